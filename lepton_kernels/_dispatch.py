"""Which implementation serves an op: torch's dispatcher by default, a namespace when forced.

Every op is defined in several torch namespaces with one schema:

* `lepton`: what users get. torch's dispatcher picks the kernel from the tensors (CPU: compiled
  library; CUDA: compiled library or Triton), and the reference serves what has no kernel.
* `lepton_reference`: always the reference.
* `lepton_triton`: always the Triton kernel; has the ops that `register_triton` was called for.

Forcing a backend swaps the namespace that the public functions call, so that a forced backend can
never fall back to another one.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from lepton_kernels._library import NativeLibraryWarning

NAMESPACE = "lepton"
REFERENCE_NAMESPACE = "lepton_reference"
TRITON_NAMESPACE = "lepton_triton"

_LIBRARIES = {
    namespace: torch.library.Library(namespace, "DEF")
    for namespace in (NAMESPACE, REFERENCE_NAMESPACE)
}


@dataclasses.dataclass(frozen=True)
class _Contract:
    schema: str
    fake: Callable[..., Any]
    setup_context: Callable[..., None] | None
    backward: Callable[..., Any] | None


_CONTRACTS: dict[str, _Contract] = {}
_CUDA_LIMITS: dict[str, Callable[..., str]] = {}
# Qualified names of the ops that torch.compile sees through.
_VISIBLE: set[str] = set()
# Names of the ops whose CUDA tensors `serve_cuda_by_reference` serves.
_BY_REFERENCE: set[str] = set()


def define_op(
    name: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    cuda_limits: Callable[..., str] | None = None,
) -> None:
    """Define the op `name` in every namespace: schema, reference kernel, fake and autograd.

    Args:
        name (str): name of the op, as in `torch.ops.lepton.<name>`.
        schema (str): arguments and returns, e.g. `(Tensor a, Tensor b) -> Tensor`.
        reference (Callable): plain PyTorch implementation; the kernel of last resort on any device.
        fake (Callable): shapes, strides and dtypes of the outputs, without data.
        setup_context (Callable, optional): saves what the backward needs.
        backward (Callable, optional): gradients; None leaves the op without a gradient.
        cuda_limits (Callable, optional): takes the op's arguments and says what the CUDA library
            has no kernel for, or an empty string. The library hands such a call to the reference;
            with `force_backend("cuda")` it is refused.
    """
    if cuda_limits is not None:
        _CUDA_LIMITS[name] = cuda_limits
    _CONTRACTS[name] = _Contract(schema, fake, setup_context, backward)
    for namespace, library in _LIBRARIES.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, reference, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
        if backward is not None:
            torch.library.register_autograd(
                f"{namespace}::{name}", backward, setup_context=setup_context, lib=library
            )
        elif namespace == REFERENCE_NAMESPACE and name.endswith("_backward"):
            # Its PyTorch operations are recorded one by one: second derivatives.
            library.impl(name, torch.library.fallthrough_kernel, "Autograd")


def register_triton(name: str, launcher: Callable[..., Any], *, traced: bool = True) -> None:
    """Make `launcher` the Triton implementation of the op `name`, which `define_op` has defined.

    It becomes `lepton_triton::<name>`, a `torch.library.triton_op` that torch.compile sees through,
    and serves CUDA tensors of `lepton::<name>` where no compiled library does.

    Args:
        name (str): name of the op.
        launcher (Callable): takes the arguments of the schema, checks and allocates, and launches
            kernels through `lepton_kernels.triton.launch.wrap`. It reads no value of a tensor, so
            that it can be traced.
        traced (bool): False for a launcher that must look at data, such as the header of a packed
            weight: torch.compile then calls the op as it is. Default: True.
    """
    contract = _CONTRACTS[name]
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default
    mutated = [a.name for a in overload._schema.arguments if a.alias_info and a.alias_info.is_write]
    op: Any = torch.library.triton_op(
        f"{TRITON_NAMESPACE}::{name}", launcher, mutates_args=mutated, schema=contract.schema
    )
    op.register_fake(contract.fake)
    if contract.backward is not None:
        op.register_autograd(contract.backward, setup_context=contract.setup_context)
    triton_overload = getattr(getattr(torch.ops, TRITON_NAMESPACE), name).default
    if traced:
        _VISIBLE.add(f"{TRITON_NAMESPACE}::{name}")
    if name not in _BY_REFERENCE:
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", "CUDA"):
            return  # the compiled CUDA library
        _LIBRARIES[NAMESPACE].impl(name, triton_overload, "CUDA")
    if traced:
        _trace_through(f"{NAMESPACE}::{name}", triton_overload)
        _VISIBLE.add(f"{NAMESPACE}::{name}")


def _trace_through(qualified: str, triton_overload: Any) -> None:
    """torch.compile turns the op `qualified` with CUDA tensors into the Triton op."""
    from torch._subclasses.functional_tensor import FunctionalTensorMode

    def rule(mode: Any, op: Any, types: Any, args: Any, kwargs: Any) -> Any:
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        if _exporting() or not any(isinstance(x, torch.Tensor) and x.is_cuda for x in leaves):
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode:
            return triton_overload(*args, **kwargs)

    torch.library.register_torch_dispatch(
        qualified, FunctionalTensorMode, rule, lib=_LIBRARIES[NAMESPACE]
    )


def _exporting() -> bool:
    # An exported program keeps the op, as torch keeps its own Triton ops there.
    from torch.export import _trace

    return bool(getattr(_trace, "custom_triton_ops_decomposition_disabled", bool)())


_warned_of_reference = False


def serve_cuda_by_reference(reason: str) -> None:
    """Warn at the first op with CUDA tensors that only plain PyTorch serves them, and serve them.

    Args:
        reason (str): why there is no kernel.
    """

    def served(name: str) -> Callable[..., Any]:
        overload = getattr(getattr(torch.ops, REFERENCE_NAMESPACE), name).default

        def run(*arguments: Any) -> Any:
            global _warned_of_reference
            if has_triton(name):  # imported since
                return getattr(getattr(torch.ops, TRITON_NAMESPACE), name).default(*arguments)
            if not _warned_of_reference:
                _warned_of_reference = True
                warnings.warn(
                    f"lepton_kernels: CUDA tensors run on the reference backend, plain PyTorch: "
                    f"{reason}",
                    NativeLibraryWarning,
                    stacklevel=2,
                )
            return overload(*arguments)

        return run

    for name in _CONTRACTS:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", "CUDA"):
            _LIBRARIES[NAMESPACE].impl(name, served(name), "CUDA")
            _BY_REFERENCE.add(name)


def forward_cpu(name: str, target: str) -> None:
    """Serve CPU tensors of the op `name` by the op `target`, which takes one argument less."""
    overload = getattr(getattr(torch.ops, NAMESPACE), target).default
    _LIBRARIES[NAMESPACE].impl(name, lambda *arguments: overload(*arguments[:-1]), "CPU")


def has_triton(name: str) -> bool:
    """Whether `register_triton` has been called for the op `name`."""
    return hasattr(getattr(torch.ops, TRITON_NAMESPACE), name)


def _absent(name: str) -> Callable[..., NoReturn]:
    def raise_absent(*arguments: Any, **keywords: Any) -> NoReturn:
        present = ", ".join(op for op in sorted(_CONTRACTS) if has_triton(op))
        raise NotImplementedError(
            f"{name}: force_backend is triton, which has no kernel of that name; it has {present}"
        )

    return raise_absent


_CALLERS: list[OpCaller] = []
_forced: str | None = None
_DEVICES = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda"}


def select_backend(name: str | None) -> None:
    """Send every public function to the backend `name`; None: torch's dispatcher chooses."""
    global _forced
    namespaces = {"reference": REFERENCE_NAMESPACE, "triton": TRITON_NAMESPACE}
    for caller in _CALLERS:
        caller.select(namespaces.get(name or "", NAMESPACE))
    _forced = name if name in _DEVICES else None


def _check_devices(overload: Any, backend: str, arguments: Sequence[Any]) -> None:
    """Refuse tensors that the backend in force has no kernel for.

    Raises:
        ValueError: a tensor is on another device.
        NotImplementedError: the CUDA library would hand the call to the reference.
    """
    op, expected = overload._schema.name.split("::")[1], _DEVICES[backend]
    if backend == "triton" and _interpreted():
        return
    for argument, value in zip(overload._schema.arguments, arguments, strict=False):
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != expected:
                raise ValueError(
                    f"{op}: force_backend is {backend!r}, which takes tensors on {expected}, got "
                    f"{argument.name} on {tensor.device}; move it, or force_backend(None)"
                )
    limits = _CUDA_LIMITS.get(op) if backend == "cuda" else None
    if limits is not None and (reason := limits(*arguments)):
        raise NotImplementedError(
            f"{op}: force_backend is 'cuda', whose kernels take {reason}; with force_backend(None) "
            "the reference, plain PyTorch, serves it"
        )


def _interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU."""
    wanted = os.environ.get("TRITON_INTERPRET", "").lower()
    return wanted in ("1", "true", "on", "yes", "y")


class OpCaller:
    """Calls one op in the namespace in force, past autograd where no gradient is asked for.

    The Python kernel that `torch.library.register_autograd` installs costs more than a small
    matrix product. It does nothing when no input requires a gradient, so that case skips it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._overloads: dict[str, Any] = {
            namespace: getattr(getattr(torch.ops, namespace), name).default
            for namespace in (NAMESPACE, REFERENCE_NAMESPACE)
        }
        self._current = self._overloads[NAMESPACE]
        self._namespace = NAMESPACE
        _CALLERS.append(self)

    @property
    def visible(self) -> bool:
        """Whether torch.compile sees kernels in the op in force, where its tensors are on CUDA."""
        return f"{self._namespace}::{self._name}" in _VISIBLE

    @property
    def current(self) -> Any:
        """The overload in force, for a backward that autograd runs."""
        return self._current

    def select(self, namespace: str) -> None:
        """Make later calls go to `namespace`."""
        if namespace == TRITON_NAMESPACE and namespace not in self._overloads:
            ops = getattr(torch.ops, namespace)
            self._overloads[namespace] = (
                getattr(ops, self._name).default if has_triton(self._name) else _absent(self._name)
            )
        self._current = self._overloads[namespace]
        self._namespace = namespace

    def __call__(self, tensors: Sequence[torch.Tensor | None], *rest: Any) -> Any:
        """Call the op with `tensors` (those that may require gradients) followed by `rest`."""
        compiling = torch.compiler.is_compiling()
        if _forced is not None and not compiling:
            _check_devices(self._overloads[NAMESPACE], _forced, (*tensors, *rest))
        if compiling or (
            torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        ):
            return self._current(*tensors, *rest)
        with torch._C._AutoDispatchBelowAutograd():
            return self._current(*tensors, *rest)
