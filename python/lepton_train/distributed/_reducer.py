"""Watches gradients arrive and has their buckets averaged, in one order on all ranks."""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd import Variable

from lepton_train.distributed._buckets import BucketSet
from lepton_train.distributed._factors import FactoredBucket, agreed_rows
from lepton_train.distributed._transport import ShmTransport, Transport

_FIRST_BYTES = 1 << 20
# Steps in a row in which a gradient comes whole before it stops to travel as factors, or has room
# for more rows.
_PRODUCTS = 3


class _Pass:
    """A backward that runs: autograd owns it and lets go at the end, also when one raises."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end

    def __call__(self) -> None:
        self._end()


class Reducer:
    """One cycle for each backward: gradients arrive, full buckets start, the end waits for all.

    The first synchronised backward starts nothing before its end: it learns in which order
    gradients arrive and how often each parameter gets one (a reentrant checkpoint gives several),
    takes rank 0's order for all, and fills the buckets anew.
    """

    def __init__(
        self,
        named: list[tuple[str, nn.Parameter]],
        transport: Transport,
        cap_bytes: int,
        overlap: bool,
        sufficient_factors: bool | None = None,
    ) -> None:
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.sync = True
        self.overlap = overlap
        self._transport = transport
        self._cap_bytes = cap_bytes
        self._sufficient_factors = sufficient_factors
        self.steps = 0  # synchronised backwards
        count = len(named)
        self._set = self._fill(range(count)[::-1])
        self._pid = os.getpid()
        self._active = False
        self._pass: Callable[[], _Pass | None] = lambda: None
        self._expected: list[int] | None = None  # gradients of each parameter in one backward
        self._arrivals: list[int] = []
        self._fired = [0] * count
        self._waiting: list[int] = []
        self._next = 0
        # Rows from which a linear layer's backward made a gradient straight in its bucket.
        self._rows: list[int | None] = [None] * count
        self._copied = [False] * count  # a gradient that was made elsewhere, or added to
        self._early: set[int] = set()  # weights with a gradient before the wrapper's output had one
        self._lent: dict[int, weakref.ref[torch.Tensor]] = {}  # gradients still to be averaged
        self._squares: list[float] | None = None
        self._finish_seconds = 0.0
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(i))
            for i, parameter in enumerate(self.parameters)
        ]

    def _fill(
        self, order: Iterable[int], factor_rows: Mapping[int, int] | None = None
    ) -> BucketSet:
        first, cap = min(_FIRST_BYTES, self._cap_bytes), self._cap_bytes
        return BucketSet(self.parameters, self._transport, list(order), first, cap, factor_rows)

    def _agree_on_factors(self) -> dict[int, int]:
        """Weights whose gradient came from one linear layer on every rank, of few rows."""
        rows_of = [0] * len(self.parameters)
        for i, rows in enumerate(self._rows):
            parameter = self.parameters[i]
            alone = self._fired[i] == 1 and not self._copied[i] and self._may_wait(i)
            if rows is None or not alone or not self.overlap or parameter.dim() != 2:
                continue
            if rows <= self._transport.most_rows(parameter, self._sufficient_factors):
                bucket = self._set.buckets[self._set.bucket_of[i]]
                room = bucket.room if isinstance(bucket, FactoredBucket) else 0
                rows_of[i] = max(
                    rows, room
                )  # never less than before, or it might soon be too little
        everyone = self._transport.gather(torch.tensor(rows_of, dtype=torch.int64))
        return agreed_rows(everyone)

    def watch(self, output: Any) -> None:
        """See the backward of `output` begin.

        The end of a backward is announced to the pass in which one asks for it. A parameter's
        hook may run in a nested pass (reentrant checkpoint), which ends early; the output's runs
        in the outer one.
        """
        self._forget_failed_backward()
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(self._begin)

    def _forget_failed_backward(self) -> None:
        """A backward that raised has not come to its end; the next must begin anew."""
        if not self._active:
            return
        # Ids of passes do not tell a nested one from the next one; whether the first lives does.
        if self._pass() is not None and torch._C._current_graph_task_id() != -1:
            return
        if self._next > 0:
            raise RuntimeError(
                "BucketedDataParallel: the last backward failed on this rank after "
                f"{self._next} of {len(self._set.buckets)} buckets had been announced to the "
                "others; the ranks no longer agree: restart from a checkpoint"
            )
        self._active = False
        self._early.clear()

    def _pass_has_gone(self, gone: weakref.ref[_Pass]) -> None:
        """After a backward that raised: what it has left in `.grad` is to be gradients."""
        if self._active and gone is self._pass:
            for bucket in self._set.buckets:
                if isinstance(bucket, FactoredBucket):
                    bucket.multiply()

    def _begin(self, _: Any = None) -> None:
        self._forget_failed_backward()
        if self._active:
            return
        self._active = True
        self._squares = None
        self._begin_empty()
        self._next = 0
        self._waiting = [len(bucket.members) for bucket in self._set.buckets]
        running = _Pass(self._end)
        self._pass = weakref.ref(running, self._pass_has_gone)
        Variable._execution_engine.queue_callback(running)

    def gradient_of(
        self, index: int, rows: torch.Tensor, inputs: torch.Tensor
    ) -> torch.Tensor | None:
        """The gradient of a linear layer's weight, in its bucket: now, or once it is averaged.

        None where the bucket may not be written: outside a backward of the wrapper's output, and
        for a weight used twice, which gets two gradients.
        """
        self._forget_failed_backward()
        bucket = self._set.buckets[self._set.bucket_of[index]]
        factored = bucket if isinstance(bucket, FactoredBucket) else None
        if self.parameters[index].grad is not None:
            if factored is not None:
                factored.multiply()  # autograd adds to it in place
            return None
        if not self._active:
            self._early.add(index)
            return None
        if self._set.bucket_of[index] < self._next:
            return None
        if self._rows[index] is not None:
            lent = self._lent.get(index)
            if factored is not None and lent is not None and lent() is not None:
                factored.multiply()  # autograd still holds it, and will add the other
            return None
        self._rows[index] = rows.shape[0]
        # A tensor of its own on the same memory: one that nobody else holds is taken as the
        # gradient, not copied.
        view = self._set.views[index].detach()
        if factored is not None and self._may_wait(index) and factored.take(rows, inputs):
            self._lent[index] = weakref.ref(view)
            return view
        return torch.mm(rows.t(), inputs, out=view)

    def _may_wait(self, index: int) -> bool:
        """Whether nobody looks at this gradient before it is averaged."""
        parameter = self.parameters[index]
        return (
            self.sync
            and index not in self._early
            and not parameter._backward_hooks
            and len(parameter._post_accumulate_grad_hooks or ()) == 1  # ours
            and not torch.is_anomaly_enabled()
        )

    def _hook(self, index: int) -> Callable[[torch.Tensor], None]:
        def arrived(parameter: torch.Tensor) -> None:
            if os.getpid() != self._pid:
                raise RuntimeError(
                    "BucketedDataParallel: backward in a process that was forked after the "
                    "wrapper was made"
                )
            self._begin()
            self._adopt(index)
            if self.sync:
                self._arrived(index)

        return arrived

    def _adopt(self, index: int) -> None:
        """Make the gradient a view of its bucket."""
        parameter, view = self.parameters[index], self._set.views[index]
        gradient = parameter.grad
        if gradient is view or gradient is None:
            return
        if gradient.layout != torch.strided:
            raise NotImplementedError(
                f"BucketedDataParallel: the gradient of {self.names[index]} is "
                f"{gradient.layout}; supported: dense (Embedding(sparse=False))"
            )
        if gradient.data_ptr() != view.data_ptr():
            self._refuse_mixture(index)
            view.copy_(gradient.detach())
            self._copied[index] = True
        parameter.grad = view

    def _refuse_mixture(self, index: int) -> None:
        """Raise if autograd has added another gradient to one that is still to be averaged."""
        bucket = self._set.buckets[self._set.bucket_of[index]]
        if isinstance(bucket, FactoredBucket) and bucket.taken is not None:
            raise RuntimeError(
                f"BucketedDataParallel: {self.names[index]} is used outside its nn.Linear in this "
                "backward, or has a hook on its autograd node, and had neither in the first one; "
                "wrap with sufficient_factors=False"
            )

    def _arrived(self, index: int) -> None:
        if self._fired[index] == 0:
            self._arrivals.append(index)
        self._fired[index] += 1
        if self._fired[index] > 1:
            self._refuse_mixture(index)
        if self._expected is None or not self.overlap:
            return
        bucket = self._set.bucket_of[index]
        if bucket < self._next:
            raise RuntimeError(
                f"BucketedDataParallel: {self.names[index]} got gradient number "
                f"{self._fired[index]} in one backward, after its bucket was averaged: earlier "
                f"steps had {self._expected[index]}. The graph changes from step to step; wrap "
                "with overlap=False, or use checkpoint(use_reentrant=False)"
            )
        if self._fired[index] == self._expected[index]:
            self._waiting[bucket] -= 1
            self._start_full()
        self._transport.progress()

    def _start_full(self) -> None:
        while self._next < len(self._set.buckets) and self._waiting[self._next] == 0:
            self._start(self._next)

    def _start(self, index: int) -> None:
        bucket = self._set.buckets[index]
        self._next = index + 1
        if isinstance(bucket, FactoredBucket):
            absent = self.parameters[bucket.members[0]].grad is None
            self._transport.start_factors(bucket, 0 if absent else bucket.taken)
            bucket.taken = None
            return
        flags = [float(self.parameters[i].grad is not None) for i in bucket.members]
        if all(flags):
            bucket.flags.fill_(1.0)
        else:
            bucket.flags.copy_(torch.tensor(flags))
        views = [self._set.views[i] for i in bucket.members]
        self._transport.start(index, bucket.flat, bucket.payload, views)

    def _end(self) -> None:
        """At the end of backward: start what is left, wait for all, hand gradients out."""
        self._active = False
        self._early.clear()
        if not self.sync:
            return
        for i, fired in enumerate(self._fired):
            if fired:
                continue
            if self.parameters[i].grad is None:
                # The bucket holds what some rank had the last time. It has not started: it lacks
                # this gradient.
                self._set.views[i].zero_()
            else:
                self._adopt(i)
        while self._next < len(self._set.buckets):
            self._start(self._next)
        begin = time.perf_counter()
        self._squares = self._transport.finish()
        self._finish_seconds += time.perf_counter() - begin
        self.steps += 1
        self._hand_out()
        if self._expected is None or self._products_come():
            self._learn()

    def _products_come(self) -> bool:
        """Whether some gradients keep coming as products where factors were expected."""
        factored = [b for b in self._set.buckets if isinstance(b, FactoredBucket)]
        return max((bucket.count_products() for bucket in factored), default=0) >= _PRODUCTS

    def _hand_out(self) -> None:
        for bucket in self._set.buckets:
            missing = [i for i in bucket.members if self.parameters[i].grad is None]
            if not missing:
                continue
            flags = dict(zip(bucket.members, bucket.flags.tolist(), strict=True))
            for i in missing:
                if flags[i] > 0:
                    self.parameters[i].grad = self._set.views[i]

    def _learn(self) -> None:
        """Take rank 0's order of arrival on all ranks; parameters that had none come last."""
        count = len(self.parameters)
        rest = [i for i in range(count)[::-1] if self._fired[i] == 0]
        order = torch.tensor([*self._arrivals, *rest], dtype=torch.int64)
        order = order.to(self.parameters[0].device)
        self._transport.broadcast(order, 0)
        self._expected = [max(fired, 1) for fired in self._fired]
        old = self._set
        new = self._fill(order.tolist(), self._agree_on_factors())
        for i, parameter in enumerate(self.parameters):
            new.views[i].copy_(old.views[i])
            if parameter.grad is not None:
                parameter.grad = new.views[i]
        self._set = new
        for bucket in old.buckets:
            self._transport.release(bucket.flat)
            if isinstance(bucket, FactoredBucket):
                self._transport.release_factors(bucket.factors)

    def reduce_nothing(self) -> None:
        """Take part in the others' backward with zeros; what it gives stays out of `.grad`."""
        self._begin_empty()
        for bucket in self._set.buckets:
            bucket.flat.zero_()
        for index, bucket in enumerate(self._set.buckets):
            if isinstance(bucket, FactoredBucket):
                self._transport.start_factors(bucket, 0)
            else:
                views = [self._set.views[i] for i in bucket.members]
                self._transport.start(index, bucket.flat, bucket.payload, views)
        self._squares = self._transport.finish()
        self.steps += 1
        for i, parameter in enumerate(self.parameters):
            parameter.grad = self._set.views[i]
        if self._expected is None or self._products_come():
            self._learn()

    def _begin_empty(self) -> None:
        count = len(self.parameters)
        self._arrivals = []
        self._fired = [0] * count
        self._rows = [None] * count
        self._copied = [False] * count
        self._lent.clear()

    @torch.no_grad()
    def clip(self, max_norm: float) -> torch.Tensor:
        """See BucketedDataParallel.clip_grad_norm_."""
        if self._squares is None:
            raise RuntimeError(
                "BucketedDataParallel.clip_grad_norm_: call it after a synchronised backward, "
                "before the next one, and once"
            )
        norm = math.sqrt(sum(self._squares))
        self._squares = None
        factor = max_norm / (norm + 1e-6)
        if not factor >= 1.0:
            for bucket in self._set.buckets:
                bucket.flat[: bucket.payload].mul_(factor)
        return torch.tensor(norm, dtype=torch.float64)

    def seconds(self) -> dict[str, float]:
        """Seconds waiting, and communicating as a whole, since the start."""
        if isinstance(self._transport, ShmTransport):
            comm = self._transport.comm
            waited = comm.seconds_waited
            return {"waiting": waited, "communication": waited + comm.seconds_worked}
        return {"waiting": self._finish_seconds, "communication": self._finish_seconds}

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    """Tensors of a module's output, however it is nested."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _tensors(getattr(value, name))
