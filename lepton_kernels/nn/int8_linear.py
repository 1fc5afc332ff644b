"""Linear layers with an int8 weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lepton_kernels.ops._int8_checks import activation_number
from lepton_kernels.ops.int8_linear import int8_linear, pack_int8_weight, unpack_int8_weight
from lepton_kernels.ops.int8_linear_qat import int8_linear_qat
from lepton_kernels.ops.quantize_int8 import quantize_int8


def _restore_float32(module: nn.Module, kept: dict[str, torch.Tensor | None]) -> None:
    # `.bfloat16()` and the like change activations and bias; quantisation stays float32.
    for name, before in kept.items():
        after = getattr(module, name)
        if before is not None and after.dtype != before.dtype:
            setattr(module, name, before.to(after.device))


def _make_room_for_input_scale(
    module: nn.Module, state: dict[str, Any], prefix: str, device: torch.device
) -> None:
    # A static layer's state decides whether this layer is static.
    for name in ("x_scale", "x_zero_point"):
        saved = state.get(prefix + name)
        if saved is not None and getattr(module, name) is None:
            setattr(module, name, torch.zeros_like(saved, device=device))


def _input_scale(
    scale: torch.Tensor | float, zero: torch.Tensor | int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The static step of an input and its zero point as tensors of shape ()."""
    op = "Int8Linear.from_linear"
    for name, value in (("x_scale", scale), ("x_zero_point", zero)):
        if isinstance(value, torch.Tensor) and value.numel() != 1:
            raise ValueError(f"{op}: {name} must have shape (), got {tuple(value.shape)}")
    step = torch.as_tensor(scale, dtype=torch.float32).reshape(())
    # Kernels multiply by the reciprocal, which is infinite for the smallest numbers.
    if not (math.isfinite(step) and step > 0 and math.isfinite(1 / step)):
        raise ValueError(f"{op}: x_scale must be finite, positive and above 2^-128, got {scale}")
    if not -128 <= int(zero) <= 127:
        raise ValueError(f"{op}: x_zero_point must be within -128 and 127, got {int(zero)}")
    return step, torch.as_tensor(zero, dtype=torch.int32).reshape(())


class Int8Linear(nn.Module):
    """Linear layer with an int8 weight, drop-in for a trained `torch.nn.Linear`.

    The weight is kept packed for the matrix kernels; a state dict holds the canonical int8 weight,
    so that a checkpoint made on one machine loads on every other.

    Args:
        in_features (int): size of the last dimension of the input.
        out_features (int): size of the last dimension of the output.
        bias (bool): whether there is a bias. Default: True.
        group_size (int, optional): input features that share a weight scale. Default: None (all).
        weight_only (bool): keep activations in floating point. Default: False.
        activation (str, optional): "relu", "gelu", "gelu_tanh" or "silu", fused. Default: None.

    Shapes:
        input (..., in_features) -> output (..., out_features), of the same float dtype.

    State dict: `weight` int8 (out_features, in_features), `weight_scale` float32 (out_features,) or
    (out_features, groups), `bias`, and for static quantisation `x_scale`, `x_zero_point`.

    Example:
        >>> import torch, lepton_kernels as lk
        >>> linear = torch.nn.Linear(32, 8)
        >>> quantized = lk.nn.Int8Linear.from_linear(linear)
        >>> quantized(torch.randn(4, 32)).shape
        torch.Size([4, 8])
    """

    packed_weight: torch.Tensor
    weight_scale: torch.Tensor
    x_scale: torch.Tensor | None
    x_zero_point: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        group_size: int | None = None,
        weight_only: bool = False,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        activation_number("Int8Linear", activation)
        if group_size is not None and (group_size < 1 or in_features % group_size != 0):
            raise ValueError(
                f"Int8Linear: group_size must divide in_features {in_features}, got {group_size}"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.group_size = group_size
        self.weight_only = weight_only
        self.activation = activation
        scale_shape = (
            (out_features,) if group_size is None else (out_features, in_features // group_size)
        )
        weight = torch.zeros(out_features, in_features, dtype=torch.int8)
        self.register_buffer("packed_weight", self._pack(weight), persistent=False)
        self.register_buffer("weight_scale", torch.ones(scale_shape))
        self.register_buffer("x_scale", None)
        self.register_buffer("x_zero_point", None)
        # Registered also where it is None: forward reads the dictionary.
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None
        )

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        x_scale: torch.Tensor | float | None = None,
        x_zero_point: torch.Tensor | int | None = None,
        weight_dtype: torch.dtype = torch.int8,
        group_size: int | None = None,
        weight_only: bool = False,
        activation: str | None = None,
    ) -> Int8Linear:
        """Quantise a float linear layer.

        Args:
            linear (nn.Linear): float32, bfloat16 or float16; left as it is.
            x_scale (Tensor or float, optional): step of the quantised input, for static
                quantisation. Default: None (dynamic, per token).
            x_zero_point (Tensor or int, optional): from -128 to 127. Default: None (0).
            weight_dtype (torch.dtype): only torch.int8. Default: torch.int8.
            group_size (int, optional): input features that share a weight scale. Default: None.
            weight_only (bool): keep activations in floating point. Default: False.
            activation (str, optional): fused activation. Default: None.

        Returns:
            Int8Linear: on the device of `linear`, in its training mode.

        Raises:
            TypeError: `linear` is no nn.Linear or its weight is not float.
            NotImplementedError: weight_dtype is not torch.int8.
            ValueError: the weight holds NaN or infinity, group_size does not divide in_features,
                x_scale is not one finite and positive number, or x_zero_point is out of range.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(
                f"Int8Linear.from_linear: linear must be a torch.nn.Linear, "
                f"got {type(linear).__name__}"
            )
        if weight_dtype != torch.int8:
            raise NotImplementedError(
                f"Int8Linear.from_linear: weight_dtype must be torch.int8, got {weight_dtype}"
            )
        if not torch.isfinite(linear.weight).all():
            raise ValueError("Int8Linear.from_linear: weight must be finite, got NaN or infinity")
        module = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            group_size=group_size,
            weight_only=weight_only,
            activation=activation,
        )
        weight, scale = quantize_int8(linear.weight.detach(), group_size=group_size)[:2]
        module.packed_weight = module._pack(weight)
        module.weight_scale = scale
        if linear.bias is not None:
            module.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        if x_scale is not None:
            scale, zero = _input_scale(x_scale, 0 if x_zero_point is None else x_zero_point)
            module.x_scale = scale.to(linear.weight.device)
            module.x_zero_point = zero.to(linear.weight.device)
        elif x_zero_point is not None:
            raise ValueError("Int8Linear.from_linear: x_zero_point needs x_scale")
        return module.train(linear.training)

    def _pack(self, weight: torch.Tensor) -> torch.Tensor:
        return pack_int8_weight(weight, group_size=self.group_size)

    @property
    def weight(self) -> torch.Tensor:
        """Canonical int8 weight (out_features, in_features), unpacked at every access."""
        return unpack_int8_weight(self.packed_weight, self.out_features, self.in_features)

    def dequantized_weight(self) -> torch.Tensor:
        """The weight that the codes stand for.

        Returns:
            Tensor: float32, shape (out_features, in_features).
        """
        scale = self.weight_scale.reshape(self.out_features, -1)
        grouped = self.weight.reshape(self.out_features, scale.shape[1], -1)
        return (grouped * scale[:, :, None]).reshape(self.out_features, self.in_features)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the layer.

        Args:
            x (Tensor): float32, bfloat16 or float16, shape (..., in_features), any stride.
            residual (Tensor, optional): float, shape of the output; added after the activation.
                Default: None.

        Returns:
            Tensor: shape (..., out_features), dtype of `x`.

        Raises:
            TypeError, ValueError: as `lepton_kernels.int8_linear`.
        """
        # Straight from the dictionaries: nn.Module's attribute look-up costs as much as the product
        # of a small layer.
        buffers: Any = self._buffers
        return int8_linear(
            x,
            buffers["packed_weight"],
            buffers["weight_scale"],
            self._parameters["bias"],
            x_scale=buffers["x_scale"],
            x_zero_point=buffers["x_zero_point"],
            residual=residual,
            activation=self.activation,
            weight_only=self.weight_only,
        )

    def extra_repr(self) -> str:
        """Sizes and the kind of quantisation."""
        kind = (
            "weight_only"
            if self.weight_only
            else "dynamic"
            if self.x_scale is None
            else f"static, x_scale={self.x_scale.item():.3g}"
        )
        group = "" if self.group_size is None else f", group_size={self.group_size}"
        activation = "" if self.activation is None else f", activation={self.activation}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {kind}{group}{activation}"
        )

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> Int8Linear:
        kept = {name: getattr(self, name) for name in ("weight_scale", "x_scale")}
        super()._apply(fn, recurse)
        _restore_float32(self, kept)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "weight"
        state = dict(state_dict)
        weight = state.pop(key, None)
        if weight is None:
            if strict:
                missing_keys.append(key)
        else:
            problem = self._weight_problem(weight)
            if problem:
                error_msgs.append(f"Int8Linear: {key} {problem}")
            else:
                self.packed_weight = self._pack(weight).to(self.packed_weight.device)
        scale = state.get(prefix + "weight_scale")
        if isinstance(scale, torch.Tensor) and not torch.isfinite(scale).all():
            error_msgs.append(
                f"Int8Linear: {prefix}weight_scale must be finite, got NaN or infinity"
            )
        _make_room_for_input_scale(self, state, prefix, self.packed_weight.device)
        super()._load_from_state_dict(
            state, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if key in unexpected_keys:
            unexpected_keys.remove(key)

    def _weight_problem(self, weight: object) -> str | None:
        expected = (self.out_features, self.in_features)
        if not isinstance(weight, torch.Tensor) or weight.dtype != torch.int8:
            got = weight.dtype if isinstance(weight, torch.Tensor) else type(weight).__name__
            return f"must be int8 (the canonical weight), got {got}"
        if tuple(weight.shape) != expected:
            return f"must have shape {expected}, got {tuple(weight.shape)}"
        return None


class Int8LinearQAT(nn.Linear):
    """`torch.nn.Linear` that trains through int8 arithmetic; `to_int8` gives the layer to ship.

    Parameters are those of `torch.nn.Linear`; the forward quantises the weight and the input, the
    backward is straight-through (Bengio et al., 2013). A state dict of `torch.nn.Linear` loads; one
    of a static layer also holds `x_scale` and `x_zero_point`.

    Args:
        group_size (int, optional): input features that share a weight scale. Default: None (all).
        others: as `torch.nn.Linear`.

    Example:
        >>> import torch, lepton_kernels as lk
        >>> layer = lk.nn.Int8LinearQAT(16, 4)
        >>> layer(torch.randn(2, 16)).sum().backward()
        >>> layer.weight.grad.shape
        torch.Size([4, 16])
    """

    group_size: int | None = None
    x_scale: torch.Tensor | None
    x_zero_point: torch.Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **options: Any):
        super().__init__(in_features, out_features, bias, **options)
        self.register_buffer("x_scale", None)
        self.register_buffer("x_zero_point", None)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        group_size: int | None = None,
        x_scale: torch.Tensor | None = None,
        x_zero_point: torch.Tensor | None = None,
    ) -> Int8LinearQAT:
        """Share the parameters of a float linear layer.

        Args:
            linear (nn.Linear): its parameters become those of the new layer.
            group_size (int, optional): input features that share a weight scale. Default: None.
            x_scale (Tensor, optional): float32, shape (); static step of the input. Default: None.
            x_zero_point (Tensor, optional): int32, shape (). Default: None (0).

        Returns:
            Int8LinearQAT: with the same parameters.

        Raises:
            TypeError: `linear` is no nn.Linear.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(
                f"Int8LinearQAT.from_linear: linear must be a torch.nn.Linear, "
                f"got {type(linear).__name__}"
            )
        module = cls(1, 1, linear.bias is not None)
        module.in_features, module.out_features = linear.in_features, linear.out_features
        module.weight, module.bias = linear.weight, linear.bias
        module.group_size = group_size
        module.x_scale, module.x_zero_point = x_scale, x_zero_point
        return module.train(linear.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer as its int8 form will.

        Args:
            x (Tensor): float32, bfloat16 or float16, shape (..., in_features).

        Returns:
            Tensor: shape (..., out_features), dtype of `x`.

        Raises:
            TypeError, ValueError: as `lepton_kernels.int8_linear_qat`.
        """
        return int8_linear_qat(
            x,
            self.weight,
            self.bias,
            x_scale=self.x_scale,
            x_zero_point=self.x_zero_point,
            group_size=self.group_size,
        )

    def to_int8(self) -> Int8Linear:
        """The int8 layer that computes what this one computes in its forward.

        Returns:
            Int8Linear: with the bias and the input scale of this layer.

        Raises:
            ValueError: the weight holds NaN or infinity.
        """
        return Int8Linear.from_linear(
            self, group_size=self.group_size, x_scale=self.x_scale, x_zero_point=self.x_zero_point
        )

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> Int8LinearQAT:
        kept = {"x_scale": self.x_scale}
        super()._apply(fn, recurse)
        _restore_float32(self, kept)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        _make_room_for_input_scale(self, state_dict, prefix, self.weight.device)
        missing: list[str] = []
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs
        )
        # The state dict of a float layer has no input scale: this layer keeps its own.
        own = {prefix + "x_scale", prefix + "x_zero_point"}
        missing_keys.extend(key for key in missing if key not in own)
