"""ZeRO-1: each rank steps its part of the parameters, and keeps the optimiser's state of that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakMethod

import torch
from torch import nn

from lepton_train.distributed.data_parallel import BucketedDataParallel

_LINE = 64  # elements: parameters begin on whole cache lines


class _Flat:
    """Parameters of one dtype side by side, and this rank's part of them."""

    def __init__(self, parameters: list[nn.Parameter], module: BucketedDataParallel) -> None:
        self.parameters = parameters
        self.begins: list[int] = []
        total = 0
        for parameter in parameters:
            self.begins.append(total)
            total += -(-parameter.numel() // _LINE) * _LINE
        transport = module._transport
        self.flat = transport.allocate_shards(total, parameters[0].dtype)
        self.begin, self.end = transport.shard(self.flat.numel())
        for parameter, begin in zip(parameters, self.begins, strict=True):
            view = self.flat.as_strided(parameter.shape, parameter.stride(), begin)
            view.copy_(parameter.detach())
            parameter.data = view

    def own(self, index: int) -> tuple[int, int]:
        """Elements of parameter `index`, in the order of memory, that are this rank's."""
        begin, count = self.begins[index], self.parameters[index].numel()
        first = min(max(self.begin - begin, 0), count)
        return first, min(max(self.end - begin, first), count)


def _in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """A dense tensor as a vector, without a copy."""
    return tensor.as_strided((tensor.numel(),), (1,))


class ShardedOptimizer(torch.optim.Optimizer):
    """An optimiser of which each rank runs its share: state and time divided by the ranks.

    Takes the averaged gradients of a `BucketedDataParallel`, steps the part of the parameters
    that this rank is in charge of, and copies the parts to all (through shared memory on one
    host). Parameters move into a buffer of their own. Works element by element: right for SGD,
    Adam, AdamW, RMSprop, Adagrad and their like; not for optimisers that look at whole
    matrices (LBFGS, Muon, Adafactor).

    Construction, `step` and `state_dict` are collective. Inside `module.join()` a rank without data
    follows the steps of the others: it takes their gradients and options (a clipped gradient, a
    learning rate that changes) as they are when they call `step`.

    Args:
        module (BucketedDataParallel): whose parameters are trained.
        optimizer (callable): an optimiser class, e.g. `torch.optim.AdamW`.
        params (iterable, optional): parameters or groups of them, as any optimiser takes.
            Default: None, all that require a gradient.
        **options: for the optimiser.

    Raises:
        TypeError: module is not a BucketedDataParallel.
        ValueError: a parameter is not the module's, or not dense.

    Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
    Models", 2020 (stage 1).

    Example:
        >>> model = lt.distributed.BucketedDataParallel(model)             # doctest: +SKIP
        >>> optimizer = lt.distributed.ShardedOptimizer(                   # doctest: +SKIP
        ...     model, torch.optim.AdamW, lr=1e-3)
    """

    def __init__(
        self,
        module: BucketedDataParallel,
        optimizer: Callable[..., torch.optim.Optimizer],
        params: Iterable[Any] | None = None,
        **options: Any,
    ) -> None:
        """See the class."""
        if not isinstance(module, BucketedDataParallel):
            raise TypeError(
                "ShardedOptimizer: module must be a BucketedDataParallel, got "
                f"{type(module).__name__}"
            )
        known = {p: name for name, p in module.module.named_parameters()}
        chosen: list[Any] = list(known) if params is None else list(params)
        super().__init__([p for p in chosen if isinstance(p, dict) or p.requires_grad], {})
        for parameter in self._all():
            if parameter not in known:
                raise ValueError(
                    f"ShardedOptimizer: a parameter of shape {tuple(parameter.shape)} is not the "
                    "module's"
                )
            if not torch.empty_like(parameter, device="meta").stride() == parameter.stride():
                raise ValueError(f"ShardedOptimizer: parameter {known[parameter]} is not dense")
        self._module = module
        self._number = len(module._followers)
        module._followers.append(WeakMethod(self._follow))
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in self._all():
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
        self._flats = [_Flat(parameters, module) for parameters in by_dtype.values()]
        self._place = {p: (flat, i) for flat in self._flats for i, p in enumerate(flat.parameters)}
        self._pieces: dict[nn.Parameter, torch.Tensor] = {}
        for parameter, (flat, i) in self._place.items():
            first, last = flat.own(i)
            # Also an empty piece: every rank has the same groups of the same length.
            piece = _in_memory_order(parameter.detach())[first:last]
            self._pieces[parameter] = piece.requires_grad_()
        self._inner = optimizer(
            [
                {**group, "params": [self._pieces[p] for p in group["params"]]}
                for group in self.param_groups
            ],
            **options,
        )
        self.defaults = self._inner.defaults
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            group.update({k: v for k, v in inner.items() if k != "params"})

    def _all(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step this rank's part, then take the others'; collective.

        Args:
            closure (callable, optional): computes gradients and gives the loss. Default: None.

        Returns:
            Any: what closure gave, or None.

        Raises:
            RuntimeError: a rank failed; on one host ShmError, which names it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        join = self._module._join
        if join is not None and join.announce_step(self._number):
            self._share(finished=False)
        self._step_own()
        return loss

    @torch.no_grad()
    def _follow(self) -> None:
        """On a rank that has finished inside `join`."""
        self._share(finished=True)
        self._step_own()

    def _share(self, finished: bool) -> None:
        """Give gradients and options of a rank that has data to those that have finished."""
        parameters = self._all()
        own = None
        if not finished:
            options = [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups]
            own = options, [parameter.grad is not None for parameter in parameters]
        everyone = self._gather_objects(own)
        source = next(r for r, theirs in enumerate(everyone) if theirs is not None)
        options, used = everyone[source]
        if finished:
            for group, theirs in zip(self.param_groups, options, strict=True):
                group.update(theirs)
        for parameter, has in zip(parameters, used, strict=True):
            if not has:
                parameter.grad = None
                continue
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            self._module._transport.broadcast(_in_memory_order(parameter.grad), source)

    def _step_own(self) -> None:
        """Step this rank's part and take the others'."""
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            inner.update({k: v for k, v in group.items() if k != "params"})
        for parameter, piece in self._pieces.items():
            if parameter.grad is None or piece.numel() == 0:
                piece.grad = None
                continue
            flat, i = self._place[parameter]
            first, last = flat.own(i)
            piece.grad = _in_memory_order(parameter.grad)[first:last]
        self._inner.step()
        for piece in self._pieces.values():
            piece.grad = None
        for flat in self._flats:
            self._module._transport.gather_shards(flat.flat)

    def state_dict(self) -> dict[str, Any]:
        """Of the whole, as the optimiser without shards gives it; collective.

        Returns:
            dict: `"state"`, by number of the parameter: tensors in its shape, and what is not cut
                (counts of steps); and `"param_groups"`. The same on every rank.

        Raises:
            RuntimeError: a rank failed.
        """
        state: dict[int, dict[str, Any]] = {}
        for number, parameter in enumerate(self._all()):
            piece = self._pieces[parameter]
            mine = self._inner.state.get(piece, {})
            everyone = self._gather_objects({k: _plain(v, piece) for k, v in mine.items()})
            keys = {key: value for theirs in everyone for key, value in theirs.items()}
            if keys:
                state[number] = {
                    key: self._whole(parameter, mine.get(key), value.dtype)
                    if isinstance(value, _Sliced)
                    else value
                    for key, value in keys.items()
                }
        at = 0
        groups = []
        for group in self.param_groups:
            count = len(group["params"])
            groups.append({**group, "params": list(range(at, at + count))})
            at += count
        return {"state": state, "param_groups": groups}

    def _gather_objects(self, value: Any) -> list[Any]:
        group = self._module.process_group
        values: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(values, value, group=group)
        return values

    def _whole(
        self, parameter: nn.Parameter, mine: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """A state tensor of all ranks' pieces, in the parameter's shape and strides."""
        flat, i = self._place[parameter]
        first, last = flat.own(i)
        whole = torch.zeros(parameter.numel(), dtype=dtype, device=parameter.device)
        if mine is not None:
            whole[first:last] = mine
        torch.distributed.all_reduce(whole, group=self._module.process_group)
        return whole.as_strided(parameter.shape, parameter.stride())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave, here or from the optimiser without shards.

        Not collective: load the same on every rank. There may be more or fewer ranks than at
        saving.

        Args:
            state_dict (dict): of a whole; each rank keeps its part.

        Raises:
            KeyError: `"state"` or `"param_groups"` is missing.
            ValueError: groups do not fit those of this optimiser.
        """
        inner: dict[int, dict[str, Any]] = {}
        for number, parameter in enumerate(self._all()):
            flat, i = self._place[parameter]
            first, last = flat.own(i)
            if number not in state_dict["state"] or first == last:
                continue
            inner[number] = {}
            for key, value in state_dict["state"][number].items():
                # A parameter of shape () looks like the count of steps.
                cut = isinstance(value, torch.Tensor) and value.shape == parameter.shape
                if cut and (value.dim() or key != "step"):
                    same = torch.empty_like(parameter.detach(), dtype=value.dtype).copy_(value)
                    value = _in_memory_order(same)[first:last].clone()
                inner[number][key] = value
        groups = state_dict["param_groups"]
        self._inner.load_state_dict({"state": inner, "param_groups": groups})
        for group, saved in zip(self.param_groups, groups, strict=True):
            group.update({k: v for k, v in saved.items() if k != "params"})


class _Sliced:
    """Stands for a state tensor that is cut like its parameter."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def _plain(value: Any, piece: torch.Tensor) -> Any:
    if isinstance(value, torch.Tensor) and value.dim() and value.shape == piece.shape:
        return _Sliced(value.dtype)
    return value
