"""Quantisation of a model's linear layers to int8: `quantize_` and `convert_`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lepton_kernels.nn.int8_linear import Int8Linear, Int8LinearQAT
from lepton_train import find
from lepton_train.calibration import Calibration, make_observer, observe_inputs
from lepton_train.find import FoundLinear, Patterns
from lepton_train.prune_masks import mask_of
from lepton_train.report import LayerRow, QuantizationReport, tensor_bytes

MODES = ("dynamic", "static", "weight_only", "qat")
_MASKED = "training through int8 would not keep its mask; call make_permanent_ first"


@dataclass(frozen=True)
class _Settings:
    mode: str
    group_size: int | None


@dataclass(frozen=True)
class _Change:
    found: FoundLinear
    new: nn.Module
    row: LayerRow


def quantize_(
    model: nn.Module,
    mode: str = "dynamic",
    *,
    calibration: Calibration | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    observer: str = "minmax",
    symmetric: bool = False,
    group_size: int | None = None,
) -> QuantizationReport:
    """Replace a model's linear layers by int8 ones, in place.

    Weights get one scale per output feature (or group). All replacements are built before the
    first one is put in: after an error the model is as it was.

    Args:
        model (nn.Module): any model; layers are found at any depth.
        mode (str): `"dynamic"` quantises the input of a layer row by row as it comes; `"static"`
            by a scale and zero point from calibration data; `"weight_only"` keeps inputs in
            floating point, for large decoders at small batch; `"qat"` puts in layers that train
            through int8 arithmetic, to be made final by `convert_`. Default: "dynamic".
        calibration (callable or iterable, optional): data for "static" (required) and "qat"
            (static scales; without it "qat" is dynamic): batches that become keyword arguments
            (mapping), arguments (tuple, list) or the argument of the model, or a callable that
            gets the model and runs it. Labels that the model does not take, as in a batch for
            training, are left out. Call `model.eval()` first. Default: None.
        include (str or iterable of str, optional): glob patterns on the names of layers, or of
            modules around them; only what matches is replaced. Default: None (all).
        exclude (str or iterable of str, optional): as `include`, to be left. Default: None.
        observer (str): how calibration chooses the range: `"minmax"`, `"percentile"` (99.99) or
            `"mse"`. Default: "minmax".
        symmetric (bool): calibrated inputs get zero point 0. Default: False.
        group_size (int, optional): input features that share a weight scale; must divide the
            in_features of every layer that is replaced. Default: None (all).

    Returns:
        QuantizationReport: a row per linear layer with what was done or why it was left.

    Raises:
        ValueError: unknown mode or observer, a pattern that matches nothing, missing or needless
            calibration, a weight or calibration data with NaN or infinity, a group_size that does
            not divide, a model that is itself a linear layer or holds none.
        TypeError: model is no nn.Module, calibration has the wrong type, or include names a layer
            outright that can't be replaced (such as a subclass of nn.Linear).

    A weight shared with another module (an embedding, say) is quantised in the linear layer only;
    the other module keeps the float weight, and the report says so. Linear layers that share one
    weight share one int8 weight. Layers that `prune_` has masked are quantised with their zeros.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", 2018.

    Example:
        >>> import torch, lepton_train as lt
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU())
        >>> report = lt.quantize_(model, "dynamic")
        >>> type(model[0]).__name__, report.quantized
        ('Int8Linear', ['0'])
    """
    op = "quantize_"
    _check_arguments(op, mode, calibration, observer, group_size)
    founds = find.find_linears(op, model)
    chosen, left = choose(op, founds, include, exclude)
    if mode == "qat":
        masked = [found for found in chosen if mask_of(found.module) is not None]
        left.update((id(found.module), _MASKED) for found in masked)
        chosen = [found for found in chosen if id(found.module) not in left]
    parameters: dict[str, tuple[float, int]] = {}
    if calibration is not None and chosen:
        layers = {found.name: found.module for found in chosen}
        try:
            observers = observe_inputs(
                model, layers, calibration, observer=observer, symmetric=symmetric
            )
        except (TypeError, ValueError) as error:
            raise type(error)(f"{op}: {error}") from error
        parameters = {name: seen.parameters() for name, seen in observers.items() if seen.count}
        if not parameters:
            raise ValueError(f"{op}: calibration reached none of the {len(layers)} linear layers")
        unreached = [found for found in chosen if found.name not in parameters]
        left.update((id(found.module), "calibration never reached it") for found in unreached)
        chosen = [found for found in chosen if found.name in parameters]
    settings = _Settings(mode, group_size)
    changes = {
        id(found.module): _build(op, found, settings, parameters.get(found.name))
        for found in chosen
    }
    return _carry_out(model, mode, founds, changes, left)


def convert_(model: nn.Module) -> QuantizationReport:
    """Replace the layers that `quantize_(model, "qat")` put in by final int8 layers, in place.

    The outputs of the model stay what they were in training with int8 arithmetic.

    Args:
        model (nn.Module): a model after quantisation-aware training.

    Returns:
        QuantizationReport: a row per linear layer.

    Raises:
        ValueError: the model holds no such layer, or a weight with NaN or infinity.
        TypeError: model is no nn.Module.

    Example:
        >>> import torch, lepton_train as lt
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32))
        >>> _ = lt.quantize_(model, "qat")
        >>> x = torch.randn(4, 64)
        >>> trained = model(x).detach()
        >>> lt.convert_(model).quantized, torch.equal(model(x), trained)
        (['0'], True)
    """
    op = "convert_"
    founds = find.find_linears(op, model)
    changes: dict[int, _Change] = {}
    left: dict[int, str] = {}
    for found in founds:
        module = found.module
        if not isinstance(module, Int8LinearQAT):
            left[id(module)] = "is not in quantisation-aware training"
            continue
        settings = _Settings("dynamic", module.group_size)
        parameters = None
        if module.x_scale is not None:
            zero = 0 if module.x_zero_point is None else int(module.x_zero_point.item())
            parameters = (module.x_scale.item(), zero)
        changes[id(module)] = _build(op, found, settings, parameters)
    if not changes:
        raise ValueError(
            f"{op}: model holds no layer in quantisation-aware training; "
            'call quantize_(model, "qat") first'
        )
    return _carry_out(model, "convert", founds, changes, left)


def choose(
    op: str, founds: list[FoundLinear], include: Patterns, exclude: Patterns
) -> tuple[list[FoundLinear], dict[int, str]]:
    """Split linear layers into those to replace and, by identity, why each other one is left.

    Args:
        op (str): the caller's name, for messages.
        founds (list of FoundLinear): from `find_linears`.
        include, exclude (str or iterable of str, optional): as in `quantize_`.

    Raises:
        ValueError: a pattern matches nothing.
        TypeError: include names a layer outright that can't be replaced.
    """
    names = [name for found in founds for name in found.names]
    wanted = find.as_patterns(op, "include", include)
    unwanted = find.as_patterns(op, "exclude", exclude)
    find.check_patterns(op, "include", wanted, names)
    find.check_patterns(op, "exclude", unwanted, names)
    chosen, left = [], {}
    for found in founds:
        reason = find.choice_reason(found, wanted, unwanted)
        if reason is None:
            reason = find.obstacle(found)
            if reason is not None and find.named_outright(found, wanted):
                raise TypeError(f"{op}: {found.name!r} can't be replaced: {reason}")
        if reason is None:
            chosen.append(found)
        else:
            left[id(found.module)] = reason
    return chosen, left


def _check_arguments(
    op: str, mode: str, calibration: Calibration | None, observer: str, group_size: int | None
) -> None:
    if mode not in MODES:
        raise ValueError(f"{op}: mode must be one of {', '.join(MODES)}; got {mode!r}")
    try:
        make_observer(observer)
    except ValueError as error:
        raise ValueError(f"{op}: {error}") from None
    if mode == "static" and calibration is None:
        raise ValueError(f'{op}: mode "static" needs calibration data; got None')
    if mode in ("dynamic", "weight_only") and calibration is not None:
        raise ValueError(
            f'{op}: calibration has no use in mode {mode!r}; only in "static" and "qat"'
        )
    if group_size is not None and (not isinstance(group_size, int) or group_size < 1):
        raise ValueError(f"{op}: group_size must be a positive int or None, got {group_size!r}")


def _build(
    op: str, found: FoundLinear, settings: _Settings, parameters: tuple[float, int] | None
) -> _Change:
    linear = found.module
    if settings.group_size is not None and linear.in_features % settings.group_size != 0:
        raise ValueError(
            f"{op}: group_size {settings.group_size} must divide in_features of {found.name!r}, "
            f"got {linear.in_features}"
        )
    if not torch.isfinite(linear.weight).all():
        raise ValueError(f"{op}: weight of {found.name!r} must be finite, got NaN or infinity")
    x_scale = x_zero = None
    if parameters is not None:
        device = linear.weight.device
        x_scale = torch.tensor(parameters[0], dtype=torch.float32, device=device)
        x_zero = torch.tensor(parameters[1], dtype=torch.int32, device=device)
    new: nn.Module
    if settings.mode == "qat":
        new = Int8LinearQAT.from_linear(
            linear, group_size=settings.group_size, x_scale=x_scale, x_zero_point=x_zero
        )
    else:
        new = Int8Linear.from_linear(
            linear,
            group_size=settings.group_size,
            weight_only=settings.mode == "weight_only",
            x_scale=x_scale,
            x_zero_point=x_zero,
        )
    also = f"also known as {', '.join(found.names[1:])}" if len(found.names) > 1 else ""
    row = LayerRow(
        found.name,
        linear.in_features,
        linear.out_features,
        "int8 qat" if settings.mode == "qat" else "int8",
        also,
        tensor_bytes(linear),
        tensor_bytes(new),
        None if parameters is None else parameters[0],
        None if parameters is None else parameters[1],
    )
    return _Change(found, new, row)


def _carry_out(
    model: nn.Module,
    mode: str,
    founds: list[FoundLinear],
    changes: dict[int, _Change],
    left: dict[int, str],
) -> QuantizationReport:
    notes = {} if mode == "qat" else _share_tied(model, changes)
    report = QuantizationReport(mode, model_bytes_before=tensor_bytes(model))
    for change in changes.values():
        put_in(model, change.found, change.new)
    for found in founds:
        key, linear = id(found.module), found.module
        if key in changes:
            row = changes[key].row
            reason = "; ".join(note for note in (row.reason, notes.get(key, "")) if note)
            report.rows.append(LayerRow(**{**vars(row), "reason": reason}))
        else:
            size = tensor_bytes(linear)
            report.rows.append(
                LayerRow(
                    found.name,
                    linear.in_features,
                    linear.out_features,
                    "left",
                    left[key],
                    size,
                    size,
                )
            )
    report.model_bytes_after = tensor_bytes(model)
    return report


def _share_tied(model: nn.Module, changes: dict[int, _Change]) -> dict[int, str]:
    """Give linear layers with one weight one int8 weight; say who else keeps the float one."""
    owners = find.parameter_owners(model)
    notes: dict[int, str] = {}
    first: dict[int, _Change] = {}
    for key, change in changes.items():
        if mask_of(change.found.module) is not None:
            continue  # the product of a weight and a mask, which nothing else holds
        weight = change.found.module.weight
        floats = [
            name
            for name, module in owners[id(weight)]
            if module is not change.found.module and id(module) not in changes
        ]
        if floats:
            notes[key] = f"weight shared with {', '.join(floats)}, which stays float"
        leader = first.setdefault(id(weight), change)
        if leader is not change:
            change.new.packed_weight = leader.new.packed_weight
            change.new.weight_scale = leader.new.weight_scale
            shared = f"shares the int8 weight of {leader.found.name}"
            notes[key] = "; ".join(note for note in (notes.get(key, ""), shared) if note)
    return notes


def put_in(model: nn.Module, found: FoundLinear, new: nn.Module) -> None:
    """Put a module in the place, or all the places, of a linear layer.

    Args:
        model (nn.Module): the model that holds the layer.
        found (FoundLinear): the layer.
        new (nn.Module): its replacement.
    """
    for name in found.names:
        parent_name, _, leaf = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        setattr(parent, leaf, new)
        if isinstance(parent, nn.TransformerEncoderLayer):
            # torch's fast path would hand `linear1.weight` to a float kernel; 0 switches it off.
            parent.activation_relu_or_gelu = 0
