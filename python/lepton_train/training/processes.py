"""The processes of a run: one, or several started by torchrun."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from lepton_train.distributed import join_torchrun


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Args:
        rank (int): from 0.
        world (int): how many there are.
        device (torch.device): where this one computes.
    """

    rank: int
    world: int
    device: torch.device

    @classmethod
    def here(cls, device: str | torch.device | None) -> Processes:
        """Join the others where torchrun has started several; choose the device.

        Args:
            device (str or device, optional): Default: None (the GPU of this local rank where there
                is one, else the CPU).
        """
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
        if device is not None:
            place = torch.device(device)
        elif torch.cuda.is_available():
            place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        else:
            place = torch.device("cpu")
        if several and dist.is_available() and not dist.is_initialized():
            join_torchrun("nccl" if place.type == "cuda" else "gloo")
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), place)
        return cls(0, 1, place)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of ranks; collective."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values
