"""Average over ranks with both halves compressed: reduce-scatter, then all-gather.

Each rank sends every other the part that the other is in charge of, compressed; adds up what it
gets in rank order; and sends the result to all, compressed again. A rank sends 2 (p - 1) / p of the
compressed size: what a ring of uncompressed data sends, times 1/4 or 1/2. What each compression
takes away is kept and added the next time, on both halves. Two ranks exchange everything once,
which is as much.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

import lepton_kernels as lk

KINDS = ("int8", "bf16")
_ROUND = 64  # elements; parts are whole cache lines where nothing else rounds them


def all_gather_flat(
    output: torch.Tensor,
    part: torch.Tensor,
    group: dist.ProcessGroup | None,
    *,
    async_op: bool = False,
) -> Any:
    """torch.distributed's all-gather into one tensor, under the name that this torch gives it."""
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    return getattr(dist, name)(output, part, group=group, async_op=async_op)


class TwoShot:
    """Compressed average over `group`, with residuals kept by key.

    Args:
        kind (str): `"int8"` (a scale for each `block` elements) or `"bf16"`.
        group (ProcessGroup, optional): Default: None, the default group.
        block (int): elements that share a scale. Default: 256.
    """

    def __init__(
        self, kind: str, group: dist.ProcessGroup | None = None, *, block: int = 256
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"TwoShot: kind must be 'int8' or 'bf16', got {kind!r}")
        self.kind = kind
        self.group = group
        self.block = block
        self.world = dist.get_world_size(group)
        self.residuals: dict[Hashable, tuple[torch.Tensor, torch.Tensor]] = {}

    def average_(self, flat: torch.Tensor, key: Hashable) -> None:
        """Average the vector `flat` in place; `key` names its residuals from call to call."""
        if flat.numel() == 0:
            return
        if self.world == 2:
            self._exchange_(flat, key)
            return
        part = -(-flat.numel() // (self.world * self._unit)) * self._unit
        first, second = self._residuals_of(flat, key, part)
        send = self._encode(flat, first, part, self.world)
        received = torch.empty_like(send)
        dist.all_to_all_single(received, send, group=self.group)
        mine = torch.zeros(part, dtype=torch.float32, device=flat.device)
        for r in range(self.world):
            self._decode(received[r], mine, 1.0 / self.world, accumulate=r > 0)
        result = self._encode(mine, second, part, 1)
        gathered = torch.empty_like(send)
        all_gather_flat(gathered, result, self.group)
        for r in range(self.world):
            to = flat[r * part : (r + 1) * part]
            if to.numel():
                self._decode(gathered[r], to, 1.0, accumulate=False)

    def _exchange_(self, flat: torch.Tensor, key: Hashable) -> None:
        """Two ranks: each sends all of its own once. The same traffic, one rounding less."""
        whole = -(-flat.numel() // self._unit) * self._unit
        residual, _ = self._residuals_of(flat, key, 0)
        send = self._encode(flat, residual, whole, 1)
        gathered = send.new_empty((2, send.shape[1]))
        all_gather_flat(gathered, send, self.group)
        total = flat if flat.dtype == torch.float32 else torch.empty_like(residual)
        for r in range(2):
            self._decode(gathered[r], total, 0.5, accumulate=r > 0)
        if total is not flat:
            flat.copy_(total)

    def forget(self) -> None:
        """Drop all residuals."""
        self.residuals.clear()

    @property
    def _unit(self) -> int:
        return self.block if self.kind == "int8" else _ROUND

    def _residuals_of(
        self, flat: torch.Tensor, key: Hashable, part: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.residuals.get(key)
        if found is None or found[0].numel() != flat.numel():
            found = (
                torch.zeros(flat.numel(), dtype=torch.float32, device=flat.device),
                torch.zeros(part, dtype=torch.float32, device=flat.device),
            )
            self.residuals[key] = found
        return found

    def _encode(
        self, flat: torch.Tensor, residual: torch.Tensor, part: int, parts: int
    ) -> torch.Tensor:
        """Bytes, shape (parts, bytes of a part); what rounding takes goes to `residual`."""
        if self.kind == "bf16":
            coded = flat.new_zeros(parts * part, dtype=torch.bfloat16)
            residual += flat
            coded[: flat.numel()] = residual
            residual -= coded[: flat.numel()]
            # A value that overflows bf16 poisons one step, not all that follow.
            residual.nan_to_num_(0.0, 0.0, 0.0)
            return coded.view(torch.uint8).view(parts, -1)
        q, scale = lk.bucket_quantize(flat, residual=residual, block=self.block)
        blocks = part // self.block
        out = torch.empty((parts, part + 4 * blocks), dtype=torch.uint8, device=flat.device)
        for r in range(parts):
            levels = q[r * part : (r + 1) * part].view(torch.uint8)
            scales = scale[r * blocks : (r + 1) * blocks].view(torch.uint8)
            out[r, : levels.numel()] = levels
            out[r, levels.numel() : part] = 0  # padding, which nobody reads
            out[r, part : part + scales.numel()] = scales
            out[r, part + scales.numel() :] = 0
        return out

    def _decode(
        self, data: torch.Tensor, to: torch.Tensor, factor: float, *, accumulate: bool
    ) -> None:
        count = to.numel()
        if self.kind == "bf16":
            values = data.view(torch.bfloat16)[:count]
            if accumulate:
                to.add_(values, alpha=factor)
            else:
                to.copy_(values).mul_(factor)
            return
        part = data.numel() * self.block // (self.block + 4)
        blocks = -(-count // self.block)
        # A copy aligns the scales, which follow the bytes.
        scale = data[part : part + 4 * blocks].clone().view(torch.float32)
        lk.bucket_dequantize_(
            to,
            data[:count].view(torch.int8),
            scale,
            block=self.block,
            factor=factor,
            accumulate=accumulate,
        )


class Pipeline:
    """Compressed averages in chunks over groups that take turns: one computes, another sends.

    Args:
        kind (str): as for `TwoShot`.
        group (ProcessGroup, optional): whose ranks; each lane has a group of its own, so that
            its collectives keep their order. Collective.
    """

    CHUNK = 1 << 18  # elements: with their residual they stay in a cache of 2 MiB
    LANES = 3

    def __init__(self, kind: str, group: dist.ProcessGroup | None = None) -> None:
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        backend = dist.get_backend(group)
        self._lanes: list[tuple[TwoShot, InOrder]] = []
        for _ in range(self.LANES):
            own = dist.new_group(ranks, backend=backend, use_local_synchronization=True)
            assert isinstance(own, dist.ProcessGroup)  # this rank is always a member
            self._lanes.append((TwoShot(kind, own), InOrder()))
            # A vector may go by another lane the next time.
            self._lanes[-1][0].residuals = self._lanes[0][0].residuals
        self._turn = 0

    def submit(self, flat: torch.Tensor, key: Hashable) -> list[torch.futures.Future[None]]:
        """Start to average `flat` in place; every rank submits the same in the same order."""
        futures = []
        for i in range(0, flat.numel(), self.CHUNK):
            two_shot, thread = self._lanes[self._turn]
            self._turn = (self._turn + 1) % self.LANES
            job = partial(two_shot.average_, flat[i : i + self.CHUNK], (key, i))
            futures.append(thread.submit(job))
        return futures

    def forget(self) -> None:
        """Drop what error feedback has kept; call it while nothing is on its way."""
        self._lanes[0][0].forget()


class InOrder:
    """Runs jobs one after another on a thread of its own, so that collectives keep one order."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], torch.futures.Future[Any]]] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._run, name="lepton-two-shot", daemon=True).start()

    def submit(self, job: Callable[[], Any]) -> torch.futures.Future[Any]:
        """Queue `job`; the future holds what it returns or raises."""
        future: torch.futures.Future[Any] = torch.futures.Future()
        self._jobs.put((job, future))
        return future

    def _run(self) -> None:
        while True:
            job, future = self._jobs.get()
            try:
                future.set_result(job())
            except Exception as error:
                future.set_exception(error)
