"""Data-parallel training: gradients averaged in buckets while backward still runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakMethod

import torch
import torch.distributed as dist
from torch import nn

from lepton_train.distributed import _replicas
from lepton_train.distributed._direct import DirectGradients
from lepton_train.distributed._join import JoinState
from lepton_train.distributed._reducer import Reducer
from lepton_train.distributed._transport import COMPRESSIONS, choose_transport
from lepton_train.distributed._tune import measured_cap_bytes

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class BucketedDataParallel(nn.Module):
    """Train `module` on several processes: each sees its part of a batch, all see one gradient.

    Stands where torch's DistributedDataParallel stands. Gradients live in buckets; each bucket
    is averaged as soon as all of it is there, while backward goes on. On one host buckets lie
    in shared memory and `.grad` are views of them; between hosts they travel by
    torch.distributed, compressed if asked for.

    Layers of class nn.Linear compute the gradient of their weight straight into its bucket; while
    the wrapper lives they have a subclass of the same name. Where a batch has few rows, ranks
    share the two factors of that gradient in its place, which are smaller, and compute the average
    from them; till backward ends its `grad` then holds nothing of use.

    Parameters that a step does not use need no flag: they get the average of what other ranks
    have for them, or keep `grad` None where no rank has any. Several backward passes add up, as
    they do on one process; inside `no_sync` they do so without communication. A gradient is never
    left unreduced without an error.

    Construction, every synchronised backward and `check_replicas` are collective: all ranks run
    the same ones in the same order.

    Args:
        module (nn.Module): on the CPU, or on one device for torch.distributed; parameters of
            float32, bfloat16 or float16, also mixed. Parameters and buffers of rank 0 are copied
            to all.
        process_group (ProcessGroup, optional): the ranks. Default: None, the default group.
        bucket_cap_mb (float or "auto"): size of a bucket in MiB; the first one is capped at 1.
            "auto" measures what a small and a large message cost here and takes the size at
            which latency is 5 % of it. Default: 25.
        compression (str, optional): between hosts: `"bf16"` or `"int8"`, two-shot with error
            feedback, or `"powersgd"`, torch's hook at rank 1. Has no use, and none is made of
            it, in shared memory. Default: None.
        broadcast_buffers (bool): copy rank 0's buffers to all before each synchronised forward,
            as DDP does. Default: True.
        overlap (bool): reduce while backward runs. False reduces at its end: for graphs in which
            the number of gradients that a parameter gets in one backward changes from step to
            step (reentrant checkpoints in a changing order). Default: True.
        shared_memory (bool, optional): True: or else raise; False: never; None: where possible.
            Default: None.
        sufficient_factors (bool, optional): share factors: True wherever they are fewer bytes
            than gradients, None where that is sure to pay (weights of 512 KiB or more; between
            hosts at most 64 rows), False never. Not on GPUs and with "powersgd". Which weights is
            learnt in the first synchronised backward. A gradient that comes another way later
            (more rows, accumulation, `register_hook` on the parameter) is averaged as it is, and
            after three such steps the choice is made anew. A weight that later gets a second
            gradient from outside its layer is an error, as is one that a hook on its autograd node
            replaces; pass False for those. Default: None.
        check_every (int): compare the parameters of all replicas, as `check_replicas`, after
            every so many synchronised backwards, at the next synchronised forward (not inside
            `join`); 0 never. Default: 0.
        timeout (float): seconds to wait for a rank on this host that runs but does not take
            part. Default: 300.

    Raises:
        TypeError: module is no nn.Module.
        RuntimeError: torch.distributed has no process group.
        ValueError: no parameter requires a gradient, a bad argument, or ranks have different
            modules (the message names the first parameter that differs).
        NotImplementedError: a parameter's dtype or layout; named.
        ShmUnavailable: shared_memory is True and cannot be had.

    Source: buckets, Li et al., 2020, arXiv:2006.15704; sufficient factors, Xie et al., 2015,
    arXiv:1511.08486; PowerSGD, Vogels et al., 2019, arXiv:1905.13727.

    Example:
        >>> model = lt.distributed.BucketedDataParallel(model)    # doctest: +SKIP
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        process_group: dist.ProcessGroup | None = None,
        bucket_cap_mb: float | str = 25,
        compression: str | None = None,
        broadcast_buffers: bool = True,
        overlap: bool = True,
        shared_memory: bool | None = None,
        sufficient_factors: bool | None = None,
        check_every: int = 0,
        timeout: float = 300.0,
    ) -> None:
        """See the class."""
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"BucketedDataParallel: module must be an nn.Module, got {type(module).__name__}"
            )
        if not dist.is_initialized():
            raise RuntimeError(
                "BucketedDataParallel: torch.distributed has no process group yet; start with "
                "torchrun and call lepton_train.distributed.join_torchrun() first"
            )
        if compression is not None and compression not in COMPRESSIONS:
            raise ValueError(
                "BucketedDataParallel: compression must be None, 'bf16', 'int8' or 'powersgd', "
                f"got {compression!r}"
            )
        if bucket_cap_mb != "auto" and not (
            isinstance(bucket_cap_mb, (int, float)) and bucket_cap_mb > 0
        ):
            raise ValueError(
                "BucketedDataParallel: bucket_cap_mb must be positive or 'auto', got "
                f"{bucket_cap_mb!r}"
            )
        if not (sufficient_factors is None or isinstance(sufficient_factors, bool)):
            raise ValueError(
                "BucketedDataParallel: sufficient_factors must be True, False or None, got "
                f"{sufficient_factors!r}"
            )
        if check_every < 0:
            raise ValueError(
                f"BucketedDataParallel: check_every must be at least 0, got {check_every}"
            )
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        _check_parameters(named)
        self.module = module
        self.process_group = process_group
        self.broadcast_buffers = broadcast_buffers
        self.check_every = check_every
        _replicas.check_same_module(module, process_group)
        device = named[0][1].device
        self._transport = choose_transport(
            process_group, compression, device, timeout, shared_memory
        )
        _replicas.broadcast_module(module, self._transport)
        cap_bytes = (
            measured_cap_bytes(self._transport, named[0][1].dtype)
            if isinstance(bucket_cap_mb, str)
            else max(int(bucket_cap_mb * (1 << 20)), 1)
        )
        self._reducer = Reducer(named, self._transport, cap_bytes, overlap, sufficient_factors)
        self._direct = DirectGradients(
            module, {p: i for i, (_, p) in enumerate(named)}, self._reducer.gradient_of
        )
        self._checked_at = 0
        self._join: JoinState | None = None
        self._followers: list[WeakMethod[Callable[[], None]]] = []  # of optimisers in parts
        self._pid = os.getpid()
        self._sync = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module; collective where it broadcasts buffers, checks replicas or joins.

        Args:
            *args: of the module.
            **kwargs: of the module.

        Returns:
            Any: what the module returns. Backward from its tensors averages gradients, and raises
                RuntimeError where the graph does not fit earlier steps or a rank failed,
                NotImplementedError for a sparse gradient.

        Raises:
            RuntimeError: this process was forked after construction, a backward failed while
                others counted on it, replicas differ (`check_every`), or a rank failed: on one
                host ShmError, which names it.
        """
        if os.getpid() != self._pid:
            raise RuntimeError(
                "BucketedDataParallel: this process was forked after the wrapper was made; "
                "wrap the module in the process that trains it"
            )
        training = torch.is_grad_enabled() and self._sync
        if self._join is not None:
            self._join.announce(training)
        if training and self._join is None:
            self._check_now_and_then()
        if training and self.broadcast_buffers and self._join is None:
            _replicas.broadcast_buffers(self.module, self._transport)
        self._reducer.sync = self._sync
        output = self.module(*args, **kwargs)
        if torch.is_grad_enabled():
            self._reducer.watch(output)
        return output

    def _check_now_and_then(self) -> None:
        """What a step has changed is seen before the next synchronised forward."""
        steps = self._reducer.steps
        if self.check_every and steps - self._checked_at >= self.check_every:
            self._checked_at = steps
            # Buffers are rank 0's again only after this.
            _replicas.check_equal(self.module, self.process_group, with_buffers=False)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within it, backward only adds up on this rank; the first backward outside reduces all.

        As in torch's DDP the forward counts too: a forward inside belongs to a backward inside.

        Returns:
            context manager: gives None.
        """
        before, self._sync = self._sync, False
        self._reducer.sync = False
        try:
            yield
        finally:
            self._sync = before
            self._reducer.sync = before

    @contextmanager
    def join(self) -> Iterator[None]:
        """Around a loop whose length differs between ranks: those that finish first take part
        with zeros until all have finished.

        Gradients are divided by the number of all ranks throughout, as DDP does by default.
        Buffers are not broadcast inside. A `ShardedOptimizer` that the others step is stepped
        here too, with their gradients and their learning rate. Collective.

        Returns:
            context manager: gives None; at its end a rank waits for all others to finish.

        Raises:
            RuntimeError: at its end, if others step a ShardedOptimizer that is gone here, or a
                rank failed.
        """
        self._join = JoinState(self.process_group)
        try:
            yield
            self._join.follow(self._reducer.reduce_nothing, self._follow_step)
        finally:
            self._join = None

    def _follow_step(self, number: int) -> None:
        step = self._followers[number]()
        if step is None:
            raise RuntimeError(
                "BucketedDataParallel.join: other ranks step a ShardedOptimizer that this rank, "
                "which has finished, no longer has; keep it until join ends"
            )
        step()

    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        """Scale the gradients so that their 2-norm is at most `max_norm`.

        As `torch.nn.utils.clip_grad_norm_`, from sums that the reduction has left behind: no
        pass to measure, and the same bits on every rank whose CPU has the same instruction set.

        Args:
            max_norm (float): of all gradients together.

        Returns:
            Tensor: the norm before, float64 of shape (), on the CPU.

        Raises:
            RuntimeError: no synchronised backward has just ended, or its gradients are clipped
                already.
        """
        return self._reducer.clip(max_norm)

    def check_replicas(self) -> None:
        """Compare parameters of all ranks by a checksum of their bits; collective.

        With `broadcast_buffers` buffers too; without it they may differ.

        Raises:
            RuntimeError: replicas differ; on every rank; names the first tensor and the ranks
                that differ.
        """
        _replicas.check_equal(self.module, self.process_group, with_buffers=self.broadcast_buffers)

    @property
    def transport(self) -> str:
        """How buckets travel, in words.

        Returns:
            str: "shared memory", "torch.distributed (BACKEND)" or "shared memory inside,
                torch.distributed between hosts".
        """
        return self._transport.kind

    @property
    def step_seconds(self) -> dict[str, float]:
        """Seconds since construction that this rank has spent on other ranks.

        Returns:
            dict[str, float]: `"waiting"`, and `"communication"` with sums and copies. Unless all
                is shared memory, both are the wait at the end of backwards.
        """
        return self._reducer.seconds()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own, without a prefix; not collective.

        Args:
            *args: of `nn.Module.state_dict`.
            **kwargs: of `nn.Module.state_dict`.

        Returns:
            dict[str, Tensor]: parameters and buffers, not copies.
        """
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """The module's own; not collective: load the same on every rank.

        Args:
            state_dict (dict[str, Tensor]): names without a prefix.
            strict (bool): names must be those of the module. Default: True.
            assign (bool): False: with True the wrapper would lose its parameters. Default: False.

        Returns:
            NamedTuple: `missing_keys` and `unexpected_keys`, lists of names.

        Raises:
            NotImplementedError: assign is True.
            RuntimeError: names (if strict) or shapes do not fit.
        """
        if assign:
            raise NotImplementedError(
                "BucketedDataParallel.load_state_dict: assign=True would replace parameters that "
                "the buckets belong to; load before wrapping, or with assign=False"
            )
        return self.module.load_state_dict(state_dict, strict=strict)

    def close(self) -> None:
        """Leave; for programs that go on after training. Not collective.

        Layers get their class back; use `.module` from then on. Peers that wait for this rank in
        shared memory fail at once.
        """
        self._direct.close()
        self._reducer.close()
        self._transport.close()


def _check_parameters(named: list[tuple[str, nn.Parameter]]) -> None:
    if not named:
        raise ValueError("BucketedDataParallel: no parameter of the module requires a gradient")
    device = named[0][1].device
    for name, parameter in named:
        if parameter.dtype not in _FLOATS or parameter.layout != torch.strided:
            raise NotImplementedError(
                f"BucketedDataParallel: parameter {name} is {parameter.dtype}, {parameter.layout}; "
                "supported: dense float32, bfloat16, float16"
            )
        if parameter.device != device:
            raise NotImplementedError(
                f"BucketedDataParallel: parameter {name} is on {parameter.device}, "
                f"{named[0][0]} on {device}; supported: one device a process"
            )
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"BucketedDataParallel: parameter {name} of a lazy module has no shape yet; run "
                "one forward before wrapping"
            )
