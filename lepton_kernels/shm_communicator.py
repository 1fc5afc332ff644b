"""Collectives between the processes of one host through memory that all of them map."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lepton_kernels import _shm_arguments as arguments
from lepton_kernels._shm_memory import ShmMemory, ShmUnavailable

__all__ = ["ShmCommunicator", "ShmUnavailable"]


class ShmCommunicator(ShmMemory):
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
            op (str): as for `all_reduce`. Default: `"sum"`.
            norm_of (int): how many elements at its start `squares` is to cover. Default: 0.

        Returns:
            int: number to pass to `wait` and `squares`.

        Raises:
            TypeError: dtype; ValueError: not contiguous, or op unknown; ShmError: not from `empty`,
                or a rank failed.
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
    ) -> Callable[[int | None], int]:
        """Check once what averages over ranks of left^T right will be computed from.

        What `bucket_outer_` computes: each rank its share of the rows, written to all. Nothing
        else is summed or sent, which is less than an all-reduce of products where terms are few.

        Args:
            product (Tensor): float32, bfloat16 or float16, shape (rows, columns), contiguous in a
                bucket from `empty`; gets the average.
            left (Tensor): dtype of product, shape (capacity, rows), likewise.
            right (Tensor): dtype of product, shape (capacity, columns), likewise.
            contributed (Tensor): float32, shape (1,), on the CPU; set to 2 if any rank brings a
                product, else to 1 if any brings factors, else to 0.

        Returns:
            callable: announces an average and returns at once, with the number to pass to `wait`
                and `squares`; till then no tensor is to be touched. Takes the rows of this rank's
                factors, at most capacity, others may have other numbers; 0: this rank adds
                nothing; None: this rank's summand stands in `product`. Raises ValueError for
                other rows, ShmError where a tensor is not from `empty` or a rank failed.

        Raises:
            TypeError: dtype. ValueError: shapes or strides.

        Source: sufficient factors, Xie et al., 2015, arXiv:1511.08486.
        """
        name = "prepare_outer"
        arguments.check_factors(name, product, left, right, contributed)
        tensors = {"product": product, "left": left, "right": right, "contributed": contributed}
        at = {key: arguments.flat(name, key, value)[0] for key, value in tensors.items()}
        rows, columns = product.shape
        capacity, dtype = left.shape[0], arguments.TYPES[product.dtype]

        def start(terms: int | None) -> int:
            if terms is not None and not 0 <= terms <= capacity:
                raise ValueError(
                    f"ShmCommunicator.{name}: terms must be from 0 to {capacity}, or None, got "
                    f"{terms}"
                )
            number = self._native.start_outer(
                at["product"],
                at["left"],
                at["right"],
                rows,
                columns,
                -1 if terms is None else terms,
                at["contributed"],
                dtype,
            )
            self._held[number] = tensors
            return number

        return start

    def progress(self) -> bool:
        """Do this rank's share of what all ranks have announced, without waiting.

        Returns:
            bool: whether none of the announced is left.

        Raises:
            ShmError: a rank failed.
        """
        return self._native.progress()

    def wait(self, number: int) -> None:
        """Wait until a collective, and all that were started before, are complete on every rank.

        Args:
            number (int): what announced it gave.

        Raises:
            ShmError: a rank failed.
        """
        self._native.wait(number)
        while self._held and next(iter(self._held)) <= number:
            del self._held[next(iter(self._held))]

    def squares(self, number: int) -> float:
        """Sum of squares of a result (of its first `norm_of` elements), after `wait`.

        Args:
            number (int): what `start_all_reduce` gave; one of the last 65536 collectives.

        Returns:
            float: the same bits on every rank.

        Raises:
            ShmError: it is not kept any more, or a rank failed.
        """
        return self._native.squares(number)

    def slice(self, numel: int) -> tuple[int, int]:
        """The part of a bucket that this rank is in charge of.

        Args:
            numel (int): elements of the bucket.

        Returns:
            tuple[int, int]: its first element, and the one behind its last.
        """
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
            op (str): as for `all_reduce`. Default: `"sum"`.

        Returns:
            Tensor: `output`.

        Raises:
            TypeError: dtype; ValueError: not contiguous, sizes do not fit, or op unknown;
                ShmError: a rank failed.
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

        Returns:
            Tensor: `output`.

        Raises:
            TypeError: dtypes differ; ValueError: not contiguous, or sizes do not fit; ShmError: a
                rank failed.
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

        Returns:
            Tensor: `tensor`.

        Raises:
            ValueError: not contiguous, or no such rank; ShmError: a rank failed.
        """
        self._native.broadcast(
            *arguments.flat("broadcast", "tensor", arguments.as_bytes(tensor)), src
        )
        return tensor

    def barrier(self) -> None:
        """Return once every rank has called it.

        Raises:
            ShmError: a rank failed.
        """
        self._native.barrier()

    @property
    def seconds_waited(self) -> float:
        """Seconds this rank has waited for others."""
        return self._native.seconds_waited

    @property
    def seconds_worked(self) -> float:
        """Seconds this rank has spent on sums and copies."""
        return self._native.seconds_worked
