"""Which implementation serves an op: torch's dispatcher by default, a namespace when forced.

Every op is defined in several torch namespaces with one schema:

* `lepton`: what users get. torch's dispatcher picks the kernel from the tensors (CPU: compiled
  library; CUDA: compiled library or Triton), and the reference serves what has no kernel.
* `lepton_reference`: always the reference.

Forcing a backend swaps the namespace that the public functions call, so that a forced backend can
never fall back to another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

NAMESPACE = "lepton"
REFERENCE_NAMESPACE = "lepton_reference"

_LIBRARIES = {
    namespace: torch.library.Library(namespace, "DEF")
    for namespace in (NAMESPACE, REFERENCE_NAMESPACE)
}


def define_op(
    name: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Define the op `name` in every namespace: schema, reference kernel, fake and autograd.

    Args:
        name (str): name of the op, as in `torch.ops.lepton.<name>`.
        schema (str): arguments and returns, e.g. `(Tensor a, Tensor b) -> Tensor`.
        reference (Callable): plain PyTorch implementation; the kernel of last resort on any device.
        fake (Callable): shapes, strides and dtypes of the outputs, without data.
        setup_context (Callable, optional): saves what the backward needs.
        backward (Callable, optional): gradients; None leaves the op without a gradient.
    """
    for namespace, library in _LIBRARIES.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, reference, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
        if backward is not None:
            torch.library.register_autograd(
                f"{namespace}::{name}", backward, setup_context=setup_context, lib=library
            )


class OpCaller:
    """Calls one op in the namespace in force, past autograd where no gradient is asked for.

    The Python kernel that `torch.library.register_autograd` installs costs more than a small
    matrix product. It does nothing when no input requires a gradient, so that case skips it.
    """

    def __init__(self, name: str) -> None:
        self._overloads = {
            namespace: getattr(getattr(torch.ops, namespace), name).default
            for namespace in (NAMESPACE, REFERENCE_NAMESPACE)
        }
        self._current = self._overloads[NAMESPACE]
        _CALLERS.append(self)

    @property
    def current(self) -> Any:
        """The overload in force, for a backward that autograd runs."""
        return self._current

    def select(self, namespace: str) -> None:
        """Make later calls go to `namespace`."""
        self._current = self._overloads[namespace]

    def __call__(self, tensors: Sequence[torch.Tensor | None], *rest: Any) -> Any:
        """Call the op with `tensors` (those that may require gradients) followed by `rest`."""
        if torch.compiler.is_compiling() or (
            torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        ):
            return self._current(*tensors, *rest)
        with torch._C._AutoDispatchBelowAutograd():
            return self._current(*tensors, *rest)


_CALLERS: list[OpCaller] = []


def select_namespace(namespace: str) -> None:
    """Send every public function to `namespace`."""
    for caller in _CALLERS:
        caller.select(namespace)
