"""RMSProp and Adadelta of torch in fewer passes over memory.

torch fuses Adam, AdamW and SGD; these two it runs as five to eight passes, each of which reads the
weights and the state from memory. Here all passes go over one block of the size of a cache before
the next block begins, and plain RMSProp, which is Adam without a first moment and without bias
correction, runs in torch's fused kernel of Adam.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.adadelta import adadelta
from torch.optim.adam import adam
from torch.optim.rmsprop import rmsprop

# Weights of a block and thread: with gradient, state and temporaries they about fill an L2.
_BLOCK = 65536
# 1 - beta ** step is 1 at this step: no bias correction.
_MANY_STEPS = 1e9


class _Blocked:
    """The part that both optimisers share; `_states` are the keys of torch's own state."""

    defaults: dict[str, Any]
    param_groups: list[dict[str, Any]]
    state: Any

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        raise NotImplementedError

    def _update(self, group: dict[str, Any], lists: dict[str, list[torch.Tensor]]) -> None:
        raise NotImplementedError

    def _whole(self, group: dict[str, Any]) -> bool:
        """Whether the step is one pass anyway, which needs no blocks."""
        return False

    def _gather(self, group: dict[str, Any]) -> dict[str, list[torch.Tensor]]:
        """Weights, gradients and state of a group, in blocks."""
        names = self._states(group)
        lists: dict[str, list[torch.Tensor]] = {
            name: [] for name in ("param", "grad", "step", *names)
        }
        size = 2**63 - 1 if self._whole(group) else _BLOCK * torch.get_num_threads()
        for param in group["params"]:
            if param.grad is None:
                continue
            if param.grad.is_sparse:
                raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
            state = self.state[param]
            if not state:
                state["step"] = torch.zeros(())
                for name in names:
                    state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
            state["step"] += 1
            tensors = {"param": param, "grad": param.grad, **{n: state[n] for n in names}}
            if param.numel() > size and all(t.is_contiguous() for t in tensors.values()):
                blocks = {name: t.detach().view(-1).split(size) for name, t in tensors.items()}
            else:
                blocks = {name: (t.detach(),) for name, t in tensors.items()}
            for name, parts in blocks.items():
                lists[name].extend(parts)
        # torch counts a step for each entry of its lists; the real count is kept above.
        lists["step"] = [torch.zeros(())] * len(lists["param"])
        return lists

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure (callable, optional): computes the loss anew and returns it. Default: None.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lists = self._gather(group)
            if lists["param"]:
                self._update(group, lists)
        return loss


class RMSprop(_Blocked, torch.optim.RMSprop):
    """`torch.optim.RMSprop` for weights on the CPU: same arguments and state dict.

    The same bits too with momentum, centered, weight_decay or maximize; without, rounding differs
    by units in the last place. `foreach`, `capturable` and `differentiable` have no effect.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> weight.grad = torch.ones(3)
        >>> RMSprop([weight], lr=0.1).step()
        >>> bool((weight < 1).all())
        True
    """

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        momentum = ("momentum_buffer",) if group["momentum"] > 0 else ()
        return ("square_avg", *momentum, *(("grad_avg",) if group["centered"] else ()))

    def _whole(self, group: dict[str, Any]) -> bool:
        return not (
            group["momentum"] or group["centered"] or group["weight_decay"] or group["maximize"]
        )

    def _update(self, group: dict[str, Any], lists: dict[str, list[torch.Tensor]]) -> None:
        if self._whole(group):
            adam(
                lists["param"],
                lists["grad"],
                # With beta1 = 0 the first moment is the gradient: written over itself.
                lists["grad"],
                lists["square_avg"],
                [],
                [torch.tensor(_MANY_STEPS) for _ in lists["param"]],
                fused=True,
                amsgrad=False,
                beta1=0.0,
                beta2=group["alpha"],
                lr=group["lr"],
                weight_decay=0.0,
                eps=group["eps"],
                maximize=False,
            )
            return
        keys = ("lr", "alpha", "eps", "weight_decay", "momentum", "centered", "maximize")
        rmsprop(
            lists["param"],
            lists["grad"],
            lists["square_avg"],
            lists.get("grad_avg", []),
            lists.get("momentum_buffer", []),
            lists["step"],
            foreach=False,
            **{key: group[key] for key in keys},
        )


class Adadelta(_Blocked, torch.optim.Adadelta):
    """`torch.optim.Adadelta` for weights on the CPU: same arguments, state dict and bits.

    `foreach`, `capturable` and `differentiable` have no effect.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> weight.grad = torch.ones(3)
        >>> Adadelta([weight]).step()
        >>> bool((weight < 1).all())
        True
    """

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("square_avg", "acc_delta")

    def _update(self, group: dict[str, Any], lists: dict[str, list[torch.Tensor]]) -> None:
        keys = ("lr", "rho", "eps", "weight_decay", "maximize")
        adadelta(
            lists["param"],
            lists["grad"],
            lists["square_avg"],
            lists["acc_delta"],
            lists["step"],
            foreach=False,
            **{key: group[key] for key in keys},
        )
