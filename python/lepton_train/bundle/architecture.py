"""A model as a tree of plain values: `describe` writes it, `build` makes the model again.

No class is imported by a name from the file: a node names a class of a fixed list (`torch.nn`,
`lepton_kernels.nn`), a model class of the installed transformers with its configuration, or a
builder that the program at hand has registered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lepton_train.bundle import lepton_modules, torch_modules
from lepton_train.bundle.errors import BundleError
from lepton_train.bundle.manifest import Architecture, Node
from lepton_train.bundle.sizes import Sizes
from lepton_train.bundle.transformers_models import (
    is_transformers_model,
    make_transformers_model,
    transformers_arguments,
)
from lepton_train.bundle.weights import Header
from lepton_train.prune_masks import mask_of, set_mask

Builder = Callable[..., nn.Module]
_BUILDERS: dict[str, Builder] = {}
_DEEPEST = 64


def register_builder(name: str, builder: Builder | None = None) -> Any:
    """Make a function known by which bundles may build a model of your own class.

    Args:
        name (str): written into the bundle; the program that loads must register the same.
        builder (callable, optional): gets the configuration as keyword arguments and returns the
            float model. Default: None (use as a decorator).

    Returns:
        callable: the builder.

    Raises:
        ValueError: the name is taken by another function.

    Example:
        >>> import lepton_train as lt
        >>> @lt.bundle.register_builder("example.mlp")
        ... def mlp(width=8):
        ...     return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
    """

    def keep(function: Builder) -> Builder:
        held = _BUILDERS.get(name)
        if held is not None and (held.__module__, held.__qualname__) != (
            function.__module__,
            function.__qualname__,
        ):
            raise ValueError(f"register_builder: {name!r} is taken by {held.__qualname__}")
        _BUILDERS[name] = function
        return function

    return keep if builder is None else keep(builder)


def describe(
    model: nn.Module, builder: str | None = None, config: Mapping[str, Any] | None = None
) -> Architecture:
    """The architecture of a model.

    Args:
        model (nn.Module): made of modules that a bundle can name, or made by a builder.
        builder (str, optional): name of a registered builder that makes the model's float form.
            Default: None.
        config (mapping, optional): keyword arguments of the builder, plain JSON values.

    Raises:
        BundleError: a module that a bundle can't name, with what to do.
    """
    seen: dict[int, str] = {}
    if builder is not None:
        values = torch_modules_plain(dict(config or {}))
        pristine = _call_builder(builder, values, {})
        root = Node(kind="builder", name=builder, arguments=values)
        root.children = _differences(model, pristine, "", seen)
    else:
        root = _node(model, "", seen)
    parameters = {id(each): each for each in model.parameters()}
    dtypes: dict[str, int] = {}
    for tensor in model.state_dict().values():
        key = str(tensor.dtype).removeprefix("torch.")
        dtypes[key] = dtypes.get(key, 0) + tensor.numel()
    return Architecture(
        root=root,
        ties=_ties(model),
        dtypes=dtypes,
        parameters=sum(each.numel() for each in parameters.values()),
    )


def torch_modules_plain(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration as plain JSON values, nested mappings too."""
    return {
        str(key): torch_modules_plain(value)
        if isinstance(value, dict)
        else torch_modules.plain(value, str(key))
        for key, value in values.items()
    }


def _ties(model: nn.Module) -> dict[str, str]:
    """Names of tensors that are another one: parameters, and packed weights of tied layers."""
    first: dict[int, str] = {}
    ties = {}
    for names in (model.named_parameters, model.named_buffers):
        for name, tensor in names(remove_duplicate=False):
            leader = first.setdefault(id(tensor), name)
            if leader != name:
                ties[name] = leader
    return ties


def _node(module: nn.Module, place: str, seen: dict[int, str]) -> Node:
    if id(module) in seen:
        return Node(kind="same", name=seen[id(module)])
    seen[id(module)] = place
    kind = parametrize.type_before_parametrizations(module)
    masked = _masked(module, place)
    if is_transformers_model(module):
        node = Node(
            kind="transformers", name=kind.__name__, arguments=transformers_arguments(module)
        )
        with torch.device("meta"):
            pristine = make_transformers_model(node.name, node.arguments)
        node.children = _differences(module, pristine, place, seen)
        return node
    if kind in lepton_modules.KINDS:
        arguments = lepton_modules.arguments_of(module, place)
        node = Node(kind="lepton", name=kind.__name__, arguments=arguments, mask=masked)
        if kind.__name__ not in lepton_modules.COMPOSITES:
            return node
    elif torch_modules.known(kind):
        node = Node(
            kind="torch",
            name=kind.__name__,
            arguments=torch_modules.arguments_of(module, kind),
            mask=masked,
        )
        if kind.__name__ == "TransformerEncoderLayer":
            with torch.device("meta"):
                pristine = torch_modules.make(node.name, node.arguments)
            node.children = _differences(module, pristine, place, seen)
            return node
        if kind.__name__ == "MultiheadAttention":
            return node
    else:
        raise BundleError(
            f"bundle.save: {place or 'the model'} is a {kind.__module__}.{kind.__qualname__}, "
            "whose code a bundle does not carry: register a function that builds it "
            "(lt.bundle.register_builder) and pass builder=NAME, config={...}"
        )
    # Not named_children: it leaves out a second place of the same module.
    for name, child in module._modules.items():
        if child is not None and name != "parametrizations":
            node.children[name] = _node(child, _join(place, name), seen)
    return node


def _masked(module: nn.Module, place: str) -> bool:
    if not parametrize.is_parametrized(module):
        return False
    parts = module.parametrizations
    only = isinstance(parts, nn.ModuleDict) and list(parts) == ["weight"]
    if not only or mask_of(module) is None or len(parts["weight"]) != 1:  # type: ignore
        raise BundleError(
            f"bundle.save: {place} has a parametrisation that is no pruning mask: make it "
            "permanent with torch.nn.utils.parametrize.remove_parametrizations"
        )
    return True


def _differences(
    module: nn.Module, pristine: nn.Module, place: str, seen: dict[int, str]
) -> dict[str, Node]:
    """Nodes of what lies in `module` where `pristine` has something else; names are relative."""
    if parametrize.type_before_parametrizations(module) is not type(pristine):
        raise BundleError(
            f"bundle.save: {place or 'the model'} is a {type(module).__name__}, but its "
            f"configuration or builder makes a {type(pristine).__name__}"
        )
    found: dict[str, Node] = {}
    pending = [("", module, pristine)]
    while pending:
        prefix, one, other = pending.pop()
        names = [name for name, child in one._modules.items() if child is not None]
        names = [name for name in names if name != "parametrizations"]
        expected = [name for name, child in other._modules.items() if child is not None]
        if set(names) != set(expected):
            raise BundleError(
                f"bundle.save: {_join(place, prefix) or 'the model'} has the modules "
                f"{', '.join(names) or 'none'}, its configuration makes "
                f"{', '.join(expected) or 'none'}: let the configuration say so "
                "(such as num_hidden_layers)"
            )
        for name in names:
            child, model_child = one._modules[name], other._modules[name]
            assert child is not None and model_child is not None  # noqa: PT018
            path = _join(prefix, name)
            if type(child) is type(model_child):
                seen.setdefault(id(child), _join(place, path))
                pending.append((path, child, model_child))
            else:
                found[path] = _node(child, _join(place, path), seen)
    return dict(sorted(found.items()))


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


@dataclass
class _Making:
    builders: Mapping[str, Builder]
    sizes: Sizes
    made: dict[str, nn.Module] = field(default_factory=dict)


def build(
    architecture: Architecture,
    builders: Mapping[str, Builder] | None,
    header: Header,
) -> nn.Module:
    """Make the model of an architecture, with weights as its constructors leave them.

    Args:
        architecture (Architecture): from a manifest.
        builders (mapping, optional): name -> builder, besides the registered ones.
        header (Header): of the weights; a module that does not match it is never allocated.

    Raises:
        BundleError: an unknown class or builder, or arguments that a constructor refuses.
    """
    making = _Making(builders or {}, Sizes(header, architecture.ties))
    return _build(architecture.root, "", making, 0)


def _build(node: Node, place: str, making: _Making, depth: int) -> nn.Module:
    made = making.made
    if depth > _DEEPEST:
        raise BundleError(f"bundle: the architecture is nested more than {_DEEPEST} deep")
    if node.kind == "same":
        if node.name not in made:
            raise BundleError(
                f"bundle: {place!r} repeats {node.name!r}, which comes later or never"
            )
        return made[node.name]
    children = {
        name: _build(child, _join(place, name), making, depth + 1)
        for name, child in node.children.items()
    }
    making.sizes.check(node, place)
    if node.kind == "transformers":
        module = make_transformers_model(node.name, node.arguments)
    elif node.kind == "builder":
        module = _call_builder(node.name, node.arguments, making.builders)
    elif node.kind == "lepton":
        module = lepton_modules.make(node.name, node.arguments, children)
    elif node.name in torch_modules.CONTAINERS:
        module = _container(node.name, children)
    else:
        module = torch_modules.make(node.name, node.arguments)
        if isinstance(module, nn.TransformerEncoder):
            module.num_layers = len(node.children["layers"].children)
            module.layers, module.norm = children["layers"], children.get("norm")
            children = {}
    if node.kind in ("transformers", "builder") or isinstance(module, nn.TransformerEncoderLayer):
        for name, child in children.items():
            _put(module, name, child, place)
    if node.mask:
        weight = module.weight
        if not isinstance(module, nn.Linear) or not isinstance(weight, torch.Tensor):
            raise BundleError(f"bundle: {place!r} can't carry a mask: it is no linear layer")
        set_mask(module, torch.ones(weight.shape, dtype=torch.bool, device=weight.device))
    for name, each in module.named_modules(remove_duplicate=False):
        made.setdefault(_join(place, name) if name else place, each)
    return module


def _container(name: str, children: dict[str, nn.Module]) -> nn.Module:
    module: nn.Module = {
        "Sequential": nn.Sequential,
        "ModuleList": nn.ModuleList,
        "ModuleDict": nn.ModuleDict,
    }[name]()
    for key, child in children.items():
        module.add_module(key, child)
    return module


def _put(module: nn.Module, path: str, child: nn.Module, place: str) -> None:
    parent_name, _, leaf = path.rpartition(".")
    try:
        parent = module.get_submodule(parent_name)
    except AttributeError:
        parent = None
    if parent is None or leaf not in parent._modules:
        raise BundleError(f"bundle: {_join(place, path)!r} is no place in the model")
    setattr(parent, leaf, child)
    if isinstance(parent, nn.TransformerEncoderLayer) and leaf.startswith("linear"):
        # torch's fast path would hand `linear1.weight` to a float kernel; 0 switches it off.
        parent.activation_relu_or_gelu = 0


def _call_builder(
    name: str, config: Mapping[str, Any], builders: Mapping[str, Builder]
) -> nn.Module:
    builder = builders.get(name) or _BUILDERS.get(name)
    if builder is None:
        listed = ", ".join(sorted({*builders, *_BUILDERS})) or "none"
        raise BundleError(
            f"bundle: the model is built by {name!r}, which is not registered here; registered: "
            f"{listed}. Register it (lt.bundle.register_builder) or pass builders={{{name!r}: ...}}"
        )
    model = builder(**config)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"bundle: builder {name!r} must return a torch.nn.Module, got {type(model).__name__}"
        )
    return model


def tie(model: nn.Module, ties: Mapping[str, str]) -> None:
    """Make tensors of a built model one again.

    Raises:
        BundleError: a name that the model lacks, or shapes that differ.
    """
    for name, leader in ties.items():
        try:
            parent_name, _, leaf = name.rpartition(".")
            parent = model.get_submodule(parent_name)
            first_name, _, first_leaf = leader.rpartition(".")
            first = getattr(model.get_submodule(first_name), first_leaf)
            own = getattr(parent, leaf)
        except AttributeError:
            raise BundleError(f"bundle: {name!r} can't be tied to {leader!r}") from None
        if not isinstance(first, torch.Tensor) or own.shape != first.shape:
            raise BundleError(f"bundle: {name!r} can't be tied to {leader!r}: shapes differ")
        setattr(parent, leaf, first)
