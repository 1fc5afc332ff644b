"""Compressed gradients for torch's FSDP2 (`fully_shard`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import lepton_kernels as lk


class Int8ReduceScatter:
    """Reduce-scatter of FSDP2 with int8 on the wire: a quarter of the traffic.

    A scale for each 256 elements, sums in float32, error feedback: what rounding takes is added
    the next time, at the price of a float32 copy of the gradients of each FSDP module. FSDP2 lets
    gradients be compressed this way; the all-gather of parameters stays torch's own, as rounded
    parameters would not add up. Each FSDP module needs one of its own: call `install`.

    Source: error feedback as in Karimireddy et al., 2019, arXiv:1901.09847.

    Example:
        >>> for block in model.layers: fully_shard(block)                # doctest: +SKIP
        >>> fully_shard(model)                                           # doctest: +SKIP
        >>> lt.distributed.Int8ReduceScatter.install(model)              # doctest: +SKIP
    """

    BLOCK = 256

    def __init__(self) -> None:
        """See the class."""
        self._residual: torch.Tensor | None = None

    @classmethod
    def install(cls, model: nn.Module) -> int:
        """Give each FSDP module in `model` one of its own.

        Args:
            model (nn.Module): `fully_shard` has been applied to it, or to modules in it.

        Returns:
            int: how many modules.

        Raises:
            TypeError: there is no FSDP module.
            NotImplementedError: this torch has no hook for it.
        """
        from torch.distributed.fsdp import FSDPModule

        modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
        if not modules:
            raise TypeError("Int8ReduceScatter.install: fully_shard has not been applied to model")
        if not hasattr(FSDPModule, "set_custom_reduce_scatter"):
            raise NotImplementedError(
                f"Int8ReduceScatter.install: FSDP2 of torch {torch.__version__} has no "
                "set_custom_reduce_scatter; newer ones have"
            )
        for module in modules:
            module.set_custom_reduce_scatter(cls())  # type: ignore[arg-type]  # is one by its calls
        return len(modules)

    def allocate(
        self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Ordinary memory, for FSDP2, which calls this.

        Args:
            size (Sequence[int]): shape.
            dtype (torch.dtype): any.
            device (torch.device): any.

        Returns:
            Tensor: of that shape, not initialised.
        """
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Part r of `input_tensor`, summed or averaged over ranks, to rank r; called by FSDP2.

        Collective.

        Args:
            output_tensor (Tensor): n elements, contiguous, any float dtype; written.
            input_tensor (Tensor): n * ranks elements, contiguous; float32, bfloat16 or float16.
            group (ProcessGroup): the ranks.
            op (ReduceOp): SUM or AVG.
            async_op (bool): not used. Default: False.

        Raises:
            NotImplementedError: another op.
            TypeError: dtype of input_tensor.
            RuntimeError: sizes do not fit, or from torch.distributed: a rank failed.
        """
        if op not in (dist.ReduceOp.SUM, dist.ReduceOp.AVG):
            raise NotImplementedError(f"Int8ReduceScatter: op must be SUM or AVG, got {op}")
        world, count = dist.get_world_size(group), output_tensor.numel()
        if self._residual is None or self._residual.shape != (world, count):
            self._residual = torch.zeros(
                (world, count), dtype=torch.float32, device=input_tensor.device
            )
        blocks = -(-count // self.BLOCK)
        send = torch.empty(
            (world, count + 4 * blocks), dtype=torch.uint8, device=self._residual.device
        )
        for r in range(world):
            part = input_tensor.view(world, count)[r]
            q, scale = lk.bucket_quantize(part, residual=self._residual[r], block=self.BLOCK)
            send[r, :count] = q.view(torch.uint8)
            send[r, count:] = scale.view(torch.uint8)
        received = torch.empty_like(send)
        dist.all_to_all_single(received, send, group=group)
        total = torch.empty(count, dtype=torch.float32, device=send.device)
        factor = 1.0 / world if op == dist.ReduceOp.AVG else 1.0
        for r in range(world):
            lk.bucket_dequantize_(
                total,
                received[r, :count].view(torch.int8),
                received[r, count:].clone().view(torch.float32),
                block=self.BLOCK,
                factor=factor,
                accumulate=r > 0,
            )
        output_tensor.view(-1).copy_(total)
