"""Memory that the processes of one host map, and how they find each other."""

from __future__ import annotations

import ctypes
import importlib
import math
import os
from typing import Any

import torch
import torch.distributed as dist

from lepton_kernels import _backend, _rendezvous

# The handshake over fresh memory; the communicator's own time-out is for work.
_HANDSHAKE_SECONDS = 30.0


class ShmUnavailable(RuntimeError):
    """Shared memory cannot be used between these processes; the message says why."""


def native_module() -> Any:
    """The library with the communicator; ShmUnavailable without one."""
    if _backend.LIBRARY is None:
        raise ShmUnavailable("ShmCommunicator needs the compiled library, which is absent")
    return importlib.import_module("lepton_kernels._native")


def kernels_address() -> int:
    """Of the function by which it finds the bucket kernels of the other library."""
    assert _backend.LIBRARY is not None
    library = ctypes.CDLL(str(_backend.LIBRARY.path))
    address = ctypes.cast(library.lepton_bucket_kernels, ctypes.c_void_p).value
    assert address is not None
    return address


class ShmMemory:
    """What `ShmCommunicator` is built on: see there."""

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        *,
        timeout: float = 300.0,
        stage_bytes: int = 1 << 20,
        spin_us: float = 50.0,
    ) -> None:
        """See the class."""
        if not timeout > 0 or stage_bytes < 4096 or spin_us < 0:
            raise ValueError(
                "ShmCommunicator: timeout must be positive, stage_bytes at least 4096 and spin_us "
                f"not negative, got {timeout}, {stage_bytes}, {spin_us}"
            )
        self._segments: dict[int, int] = {}  # address of this rank's part: number
        # Tensors whose addresses a collective that has started may still use.
        self._held: dict[int, dict[str, torch.Tensor]] = {}
        error: str | None = None
        try:
            self._connect(group, timeout, stage_bytes, spin_us)
        except (RuntimeError, OSError) as reason:
            error = f"{type(reason).__name__}: {reason}"
        # One rank that cannot is enough: the others must not wait for it in shared memory.
        outcomes: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(outcomes, error, group=group)
        failures = [f"rank {r}: {text}" for r, text in enumerate(outcomes) if text is not None]
        if failures:
            self.close()
            raise ShmUnavailable("no shared memory between these ranks; " + "; ".join(failures))

    def _connect(
        self,
        group: dist.ProcessGroup | None,
        timeout: float,
        stage_bytes: int,
        spin_us: float,
    ) -> None:
        native = native_module()
        handshake = min(timeout, _HANDSHAKE_SECONDS)
        start_time = native.process_start_time(os.getpid())
        self._host = _rendezvous.find_host_group(group, start_time, handshake)
        self.ranks = self._host.ranks
        stage_bytes = math.ceil(stage_bytes / 4096) * 4096
        size = native.shm_control_bytes(len(self.ranks), stage_bytes)
        fd = self._host.share(size, "control")
        try:
            self._native = native.ShmCommunicator(
                self._host.index,
                [(place.pid, place.start_time) for place in self._host.places],
                self.ranks,
                fd,
                stage_bytes,
                timeout,
                spin_us * 1e-6,
                kernels_address(),
            )
        finally:
            os.close(fd)
        self.rank: int = self._native.rank
        self.size: int = self._native.size
        # Comes back only if all map the same memory: the proof that they are on one host.
        self._native.barrier()

    def empty(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """Allocate a bucket in shared memory, filled with zeros; collective.

        Args:
            numel (int): elements, the same on every rank.
            dtype (torch.dtype): any.

        Returns:
            Tensor: 1-D, this rank's own. All ranks' parts stay mapped until `free` or `close`,
                and after that as long as a tensor uses this one.

        Raises:
            ValueError: numel is negative.
            RuntimeError: sizes differ between ranks, or there is no memory; on every rank.
        """
        if numel < 0:
            raise ValueError(f"ShmCommunicator.empty: numel must not be negative, got {numel}")
        bytes_needed = max(numel * dtype.itemsize, 1)
        region = math.ceil(bytes_needed / 4096) * 4096
        fd = self._host.share(region * self.size, f"{numel} elements of {dtype}")
        try:
            index = self._native.add_segment(fd, region)
        finally:
            os.close(fd)
        self._native.barrier()
        bytes_tensor = torch.frombuffer(self._native.region(index), dtype=torch.uint8)
        self._segments[bytes_tensor.data_ptr()] = index
        return bytes_tensor[: numel * dtype.itemsize].view(dtype)

    def free(self, bucket: torch.Tensor) -> None:
        """Give a bucket up; collective. Waits until every rank is done with all that was started.

        The memory of all ranks is unmapped here once no tensor uses this rank's part; until then
        the tensor is one like any other, which collectives copy.

        Args:
            bucket (Tensor): from `empty`, or a view into it.

        Raises:
            ValueError: not a bucket of this communicator, or given up before.
            ShmError: a rank failed.
        """
        start = bucket.untyped_storage().data_ptr()
        if start not in self._segments:
            raise ValueError(
                "ShmCommunicator.free: bucket must come from `empty` of this communicator and not "
                f"be given up yet, got {bucket.dtype} of shape {tuple(bucket.shape)}"
            )
        self._native.barrier()
        self._native.drop_segment(self._segments.pop(start))

    def close(self) -> None:
        """Leave; not collective. Peers that wait for this rank fail at once."""
        if hasattr(self, "_native"):
            self._native.close()
        if hasattr(self, "_host"):
            self._host.close()
