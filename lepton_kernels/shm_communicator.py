"""Collectives between the processes of one host through memory that all of them map."""

from __future__ import annotations

import ctypes
import importlib
import math
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from lepton_kernels import _backend, _rendezvous
from lepton_kernels import _shm_arguments as arguments

# The handshake over fresh memory; the communicator's own time-out is for work.
_HANDSHAKE_SECONDS = 30.0


class ShmUnavailable(RuntimeError):
    """Shared memory cannot be used between these processes; the message says why."""


def _native() -> Any:
    if _backend.LIBRARY is None:
        raise ShmUnavailable("ShmCommunicator needs the compiled library, which is absent")
    return importlib.import_module("lepton_kernels._native")


def _kernels_address() -> int:
    assert _backend.LIBRARY is not None
    library = ctypes.CDLL(str(_backend.LIBRARY.path))
    address = ctypes.cast(library.lepton_bucket_kernels, ctypes.c_void_p).value
    assert address is not None
    return address


def bucket_pass_seconds(
    numel: int, dtype: torch.dtype, *, threads: int = 2, rounds: int = 10
) -> float:
    """Seconds in which threads of this process add two buckets and write the sum to both.

    What no all-reduce between two processes of a host can beat: the same sums and the same
    traffic, without a message.

    Args:
        numel (int): elements of each bucket.
        dtype (torch.dtype): float32, bfloat16, float16, int8 or int64.
        threads (int): Default: 2.
        rounds (int): passes that the mean is taken of. Default: 10.

    Returns:
        float: seconds of a pass.

    Raises:
        ShmUnavailable: no compiled library. TypeError: dtype. ValueError: not positive.
    """
    if dtype not in arguments.TYPES:
        raise TypeError(f"bucket_pass_seconds: dtype must be one of {arguments.NAMES}, got {dtype}")
    size = numel * dtype.itemsize
    native = _native()
    return native.bucket_pass_seconds(
        size, arguments.TYPES[dtype], threads, rounds, _kernels_address()
    )


class ShmCommunicator:
    """All-reduce and its kin between ranks of one host, through shared memory.

    Buckets from `empty` lie in memory that all ranks map: all-reducing one takes one pass, in which
    each rank adds up its slice over all ranks, in rank order with fp32 accumulation, and writes
    it to all. Every rank gets the same bits, from run to run. Other tensors work too and pass
    through a buffer.

    Nothing is left behind however the processes end: memory is anonymous and sockets are
    abstract. A rank that dies, hangs longer than `timeout`, closes early or calls something else
    makes the call fail on the others, with an error that names the rank.

    Creating one is collective over `group`, and so is every call but `progress`; all ranks make
    the same calls in the same order. Only the process that created it may use it, from one thread
    at a time.

    Args:
        group (ProcessGroup, optional): whose ranks of this host are joined. Used for finding
            each other only. Default: None, the default group.
        timeout (float): seconds to wait for a peer that runs but does not take part.
            Default: 300.
        stage_bytes (int): size of one buffer for tensors outside the shared memory; two a rank.
            Default: 1 MiB.
        spin_us (float): microseconds to spin before sleeping. Default: 50.

    Attributes:
        ranks (list[int]): group ranks on this host, rising; `rank` and `size` count within it.

    Raises:
        ShmUnavailable: on every rank of the group, if the compiled library is missing or the
            handshake fails on any; use torch.distributed then.

    Example:
        >>> comm = lk.ShmCommunicator()                      # doctest: +SKIP
        >>> bucket = comm.empty(1_000_000, torch.float32)    # doctest: +SKIP
        >>> comm.all_reduce(bucket, "avg")                   # doctest: +SKIP
    """

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
        native = _native()
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
                _kernels_address(),
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

    def all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        """Sum or average `tensor` over ranks, in place.

        Args:
            tensor (Tensor): contiguous; float32, bfloat16, float16, int8 or int64. One pass and
                no copy if it comes from `empty`.
            op (str): `"sum"`, or `"avg"` for floats. Integers wrap. Default: `"sum"`.

        Returns:
            Tensor: `tensor`.

        Raises:
            TypeError: dtype; ValueError: not contiguous, or op unknown; ShmError: a rank failed.
        """
        number = arguments.op_number("all_reduce", op, tensor)
        self._native.all_reduce(*arguments.flat("all_reduce", "tensor", tensor), number)
        return tensor

    def start_all_reduce(self, bucket: torch.Tensor, op: str = "sum", *, norm_of: int = 0) -> int:
        """Announce an all-reduce of a bucket from `empty` and return at once.

        Args:
            bucket (Tensor): from `empty` or a contiguous view into it; not to be touched until
                `wait` returns.
            op (str): as for `all_reduce`.
            norm_of (int): how many elements at its start `squares` is to cover. Default: 0.

        Returns:
            int: number to pass to `wait` and `squares`.
        """
        number = arguments.op_number("start_all_reduce", op, bucket)
        data = arguments.flat("start_all_reduce", "bucket", bucket)
        return self._native.start_all_reduce(*data, number, norm_of)

    def prepare_outer(
        self,
        product: torch.Tensor,
        left: torch.Tensor,
        right: torch.Tensor,
        contributed: torch.Tensor,
        *,
        divisor: float | None = None,
    ) -> Callable[[int | None], int]:
        """Check once what sums over ranks of left^T right will be computed from.

        What `bucket_outer_` computes: each rank its share of the rows, written to all. Nothing
        else is summed or sent, which is less than an all-reduce of products where terms are few.

        Args:
            product (Tensor): float32, bfloat16 or float16, shape (rows, columns), contiguous in a
                bucket from `empty`; gets the sum by the divisor.
            left (Tensor): dtype of product, shape (capacity, rows), likewise.
            right (Tensor): dtype of product, shape (capacity, columns), likewise.
            contributed (Tensor): float32, shape (1,), anywhere; set to 1 if any rank adds
                something, else to 0.
            divisor (float, optional): the same on every rank. Default: None, the number of ranks:
                an average.

        Returns:
            callable: announces a sum and returns at once, with the number to pass to `wait`
                and `squares`; till then no tensor is to be touched. Takes the rows of this rank's
                factors, at most capacity, others may have other numbers; 0: this rank adds
                nothing; None: this rank's summand stands in `product`. Raises ValueError for
                other rows, ShmError where a tensor is not from `empty` or a rank failed.

        Raises:
            TypeError: dtype. ValueError: shapes or strides.

        Source: sufficient factors, Xie et al., 2015, arXiv:1511.08486.
        """
        name = "prepare_outer"
        arguments.check_factors(name, product, left, right)
        tensors = {"product": product, "left": left, "right": right, "contributed": contributed}
        at = {key: arguments.flat(name, key, value)[0] for key, value in tensors.items()}
        rows, columns = product.shape
        capacity, number = left.shape[0], arguments.TYPES[product.dtype]

        def start(terms: int | None) -> int:
            if terms is not None and not 0 <= terms <= capacity:
                raise ValueError(
                    f"ShmCommunicator.{name}: terms must be from 0 to {capacity}, or None, got "
                    f"{terms}"
                )
            return self._native.start_outer(
                at["product"],
                at["left"],
                at["right"],
                rows,
                columns,
                -1 if terms is None else terms,
                self.size if divisor is None else divisor,
                at["contributed"],
                number,
            )

        return start

    def progress(self) -> bool:
        """Do this rank's share of what all ranks have announced, without waiting; True if none
        of the announced is left."""
        return self._native.progress()

    def wait(self, number: int) -> None:
        """Wait until the all-reduce `number` is complete on every rank."""
        self._native.wait(number)

    def squares(self, number: int) -> float:
        """Sum of squares of the result of `number` (of its first `norm_of` elements); the same
        bits on every rank, after `wait`. Kept for the last 65536 collectives."""
        return self._native.squares(number)

    def slice(self, numel: int) -> tuple[int, int]:
        """First element, and the one behind the last, of the part of a bucket of `numel` elements
        that this rank is in charge of."""
        return self._native.slice(numel)

    def gather_slices(self, bucket: torch.Tensor) -> torch.Tensor:
        """Copy every rank's slice of a bucket to all, in place.

        Args:
            bucket (Tensor): from `empty` or a contiguous view into it; this rank brings what
                `slice(bucket.numel())` says.

        Returns:
            Tensor: `bucket`.

        Raises:
            TypeError: dtype; ValueError: not contiguous; ShmError: not from `empty`, or a rank
                failed.
        """
        self._native.gather_slices(*arguments.flat("gather_slices", "bucket", bucket))
        return bucket

    def reduce_scatter(
        self, output: torch.Tensor, input: torch.Tensor, op: str = "sum"
    ) -> torch.Tensor:
        """Sum or average over ranks; rank r gets part r of `size` equal parts.

        Args:
            output (Tensor): contiguous, numel n; written.
            input (Tensor): contiguous, numel n * size, dtype of output.
            op (str): as for `all_reduce`.
        """
        name = "reduce_scatter"
        number = arguments.op_number(name, op, input)
        arguments.check_pair(name, "input", input, "output", output, self.size)
        data, count, dtype = arguments.flat(name, "output", output)
        self._native.reduce_scatter(
            arguments.flat(name, "input", input)[0], data, count, dtype, number
        )
        return output

    def all_gather(self, output: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
        """Concatenate `input` of all ranks, in rank order, in `output` on every rank.

        Args:
            output (Tensor): contiguous, numel n * size; written.
            input (Tensor): contiguous, numel n, dtype of output, which may be any.
        """
        name = "all_gather"
        arguments.check_pair(name, "output", output, "input", input, self.size)
        data, count, dtype = arguments.flat(name, "input", arguments.as_bytes(input))
        self._native.all_gather(
            data, arguments.flat(name, "output", arguments.as_bytes(output))[0], count, dtype
        )
        return output

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
        """Copy `tensor` of rank `src` (of this communicator) to all, in place.

        Args:
            tensor (Tensor): contiguous, any dtype.
            src (int): rank within the communicator. Default: 0.
        """
        self._native.broadcast(
            *arguments.flat("broadcast", "tensor", arguments.as_bytes(tensor)), src
        )
        return tensor

    def barrier(self) -> None:
        """Return once every rank has called it."""
        self._native.barrier()

    @property
    def seconds_waited(self) -> float:
        """Seconds this rank has waited for others."""
        return self._native.seconds_waited

    @property
    def seconds_worked(self) -> float:
        """Seconds this rank has spent on sums and copies."""
        return self._native.seconds_worked

    def close(self) -> None:
        """Leave; not collective. Peers that wait for this rank fail at once."""
        if hasattr(self, "_native"):
            self._native.close()
        if hasattr(self, "_host"):
            self._host.close()
