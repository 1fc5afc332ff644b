"""Linear layer with a pruned weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lepton_kernels.ops._int8_checks import activation_number
from lepton_kernels.ops.sparse_linear import sparse_linear
from lepton_kernels.ops.sparse_weight import SparseWeight, pack_sparse

_CANONICAL = ("values", "mask", "shape", "weight_scale")


class SparseLinear(nn.Module):
    """Linear layer with a pruned weight, drop-in for a pruned `torch.nn.Linear`.

    The weight is kept packed for the kernels. `fine_tune()` turns the kept values into a parameter,
    so that training changes them and never the zeros; `pack()` turns them back.

    Args:
        in_features (int): size of the last dimension of the input.
        out_features (int): size of the last dimension of the output.
        bias (bool): whether there is a bias. Default: True.
        layout (str): as in `pack_sparse`. Default: "bitmask".
        dtype (torch.dtype): of the stored values. Default: torch.float32.
        activation (str, optional): "relu", "gelu", "gelu_tanh" or "silu", fused. Default: None.
        n (int): values kept in each group, for layout "n:m". Default: 2.
        m (int): size of a group. Default: 4.

    Shapes:
        input (..., in_features) -> output (..., out_features), of the same float dtype.

    State dict: `values` (kept,), row by row; `mask` uint8 (out_features, ceil(in_features / 8)),
    bit i of byte j for input 8 j + i; `shape` int64 (2,); `weight_scale` float32 (out_features,)
    for int8 values; `bias`. It loads into any SparseLinear of that shape with that kind of values.

    Example:
        >>> import torch, lepton_kernels as lk
        >>> linear = torch.nn.Linear(32, 8)
        >>> linear.weight.data[linear.weight.abs() < 0.1] = 0
        >>> sparse = lk.nn.SparseLinear.from_linear(linear)
        >>> torch.allclose(sparse(x := torch.randn(4, 32)), linear(x), atol=1e-5)
        True
    """

    packed_weight: torch.Tensor

    values: nn.Parameter | None
    kept: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        layout: str = "bitmask",
        dtype: torch.dtype = torch.float32,
        activation: str | None = None,
        n: int = 2,
        m: int = 4,
    ) -> None:
        super().__init__()
        activation_number("SparseLinear", activation)
        self.in_features = in_features
        self.out_features = out_features
        self.layout = layout
        self.dtype = dtype
        self.activation = activation
        self.n, self.m = n, m
        self.register_parameter("values", None)
        self.register_buffer("kept", None, persistent=False)
        # Nothing can be packed on the meta device, whose modules get their weight by loading.
        device = torch.get_default_device()
        weight = torch.zeros(
            out_features, in_features, device="cpu" if device.type == "meta" else device
        )
        self._set(pack_sparse(weight, layout, dtype=dtype, n=n, m=m))
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        layout: str = "bitmask",
        dtype: torch.dtype | None = None,
        *,
        mask: torch.Tensor | None = None,
        activation: str | None = None,
        n: int = 2,
        m: int = 4,
    ) -> SparseLinear:
        """Pack a pruned linear layer.

        Args:
            linear (nn.Linear): float32, bfloat16 or float16, with zeros where it is pruned; left as
                it is.
            layout (str): as in `pack_sparse`. Default: "bitmask".
            dtype (torch.dtype, optional): of the stored values: float32, bfloat16, float16 or int8.
                Default: None, dtype of the weight.
            mask (Tensor, optional): where weights are kept. Default: None, where they are not zero.
            activation (str, optional): fused activation. Default: None.
            n (int): values kept in each group, for layout "n:m". Default: 2.
            m (int): size of a group. Default: 4.

        Returns:
            SparseLinear: on the device of `linear`, in its training mode, without gradients.

        Raises:
            TypeError: `linear` is no nn.Linear, or a dtype is not supported.
            ValueError: as `pack_sparse`.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(
                f"SparseLinear.from_linear: linear must be a torch.nn.Linear, "
                f"got {type(linear).__name__}"
            )
        weight = linear.weight.detach()
        dtype = weight.dtype if dtype is None else dtype
        packed = pack_sparse(weight, layout, dtype=dtype, mask=mask, n=n, m=m)
        module = cls(0, 0, False, layout=layout, dtype=dtype, activation=activation, n=n, m=m)
        module.in_features, module.out_features = linear.in_features, linear.out_features
        module._set(packed)
        if linear.bias is not None:
            module.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        return module.train(linear.training)

    def _set(self, weight: SparseWeight) -> None:
        self._weight = weight
        self.register_buffer("packed_weight", weight.packed, persistent=False)

    @property
    def weight(self) -> SparseWeight:
        """The packed weight; while fine-tuning, packed anew from the values at every access."""
        if self.values is None:
            if self._weight.packed is not self.packed_weight:
                if torch.compiler.is_compiling():
                    return self._weight._traced(self.packed_weight)
                self._weight = SparseWeight(self.packed_weight)
            return self._weight
        dense = self._dense().detach()
        return pack_sparse(dense, self.layout, dtype=self.dtype, mask=self.kept, n=self.n, m=self.m)

    @property
    def sparsity(self) -> float:
        """Share of the weights that are not stored."""
        return self.weight.sparsity

    def _dense(self) -> torch.Tensor:
        assert self.values is not None
        zeros = self.values.new_zeros(self.out_features, self.in_features)
        assert self.kept is not None
        return zeros.masked_scatter(self.kept, self.values)

    def fine_tune(self) -> SparseLinear:
        """Turn the kept values (and the bias) into trainable parameters; returns the layer.

        `values` becomes a float parameter, shape (kept,), row by row; int8 values become their
        float32 meaning. Make the optimiser after this.
        """
        if self.values is None:
            weight = self.weight
            kept = weight.mask()
            self.kept = kept
            self.values = nn.Parameter(weight.to_dense()[kept])
            if self.bias is not None:
                self.bias.requires_grad_(True)
        return self

    def pack(self) -> SparseLinear:
        """End fine-tuning: pack the values, in the dtype of the layer; returns the layer."""
        if self.values is not None:
            self._set(self.weight)
            self.values, self.kept = None, None
            if self.bias is not None:
                self.bias.requires_grad_(False)
        return self

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the layer.

        Args:
            x (Tensor): float32, bfloat16 or float16, shape (..., in_features), any stride.
            residual (Tensor, optional): float, shape of the output; added after the activation.
                Default: None.

        Returns:
            Tensor: shape (..., out_features), dtype of `x`.

        Raises:
            TypeError, ValueError: as `lepton_kernels.sparse_linear`.
        """
        if self.values is not None:
            # Training is dense arithmetic: torch's own product, whose gradients reach the values.
            y = nn.functional.linear(x, self._dense().to(x.dtype), self.bias)
            y = _ACTIVATE[self.activation](y)
            return y if residual is None else y + residual
        return sparse_linear(
            x, self.weight, self.bias, residual=residual, activation=self.activation
        )

    def extra_repr(self) -> str:
        """Sizes, layout and sparsity."""
        activation = "" if self.activation is None else f", activation={self.activation}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, layout={self.layout}, dtype={self.dtype}, "
            f"sparsity={self.sparsity:.3f}{activation}"
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.values is None:
            weight = self.weight
            destination[prefix + "values"] = weight.values()
            kept, scale = weight.mask(), weight.scale()
            if scale is not None:
                destination[prefix + "weight_scale"] = scale
        else:
            assert self.kept is not None
            kept = self.kept
        destination[prefix + "mask"] = pack_bits(kept)
        destination[prefix + "shape"] = torch.tensor([self.out_features, self.in_features])

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
        state = dict(state_dict)
        given = {name: state.pop(prefix + name, None) for name in _CANONICAL}
        absent = [name for name in _CANONICAL[:3] if given[name] is None]
        if absent:
            missing_keys.extend(prefix + name for name in absent if strict)
        else:
            try:
                self._load(**given)
            except (TypeError, ValueError) as error:
                error_msgs.append(f"SparseLinear: {prefix}: {error}")
        own_missing: list[str] = []
        super()._load_from_state_dict(
            state, prefix, local_metadata, strict, own_missing, unexpected_keys, error_msgs
        )
        missing_keys.extend(key for key in own_missing if key != prefix + "values")

    def _load(
        self,
        values: torch.Tensor,
        mask: torch.Tensor,
        shape: torch.Tensor,
        weight_scale: torch.Tensor | None,
    ) -> None:
        expected = (self.out_features, self.in_features)
        if tuple(shape.tolist()) != expected:
            raise ValueError(f"shape must be {expected}, got {tuple(shape.tolist())}")
        kept = unpack_bits(mask, *expected)
        if values.dim() != 1 or values.numel() != int(kept.sum()):
            raise ValueError(
                f"values must have shape ({int(kept.sum())},) to match mask, "
                f"got {tuple(values.shape)}"
            )
        device = self.packed_weight.device
        dense = values.new_zeros(expected).masked_scatter(kept, values)
        if self.values is not None:
            if weight_scale is not None:
                dense = dense * weight_scale[:, None]
            self.kept = kept.to(device)
            self.values = nn.Parameter(dense[kept].to(device, self.values.dtype))
            return
        packed = pack_sparse(
            dense, self.layout, dtype=self.dtype, mask=kept, scale=weight_scale, n=self.n, m=self.m
        )
        self._set(packed.to(device))


_ACTIVATE: dict[str | None, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda y: y,
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda y: nn.functional.gelu(y, approximate="tanh"),
    "silu": nn.functional.silu,
}


def pack_bits(mask: torch.Tensor) -> torch.Tensor:
    """A bool matrix (N, K) as uint8 (N, ceil(K / 8)); bit i of byte j is element 8 j + i."""
    rows, columns = mask.shape
    padded = mask.new_zeros(rows, (columns + 7) // 8 * 8)
    padded[:, :columns] = mask
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (padded.view(rows, -1, 8).to(torch.uint8) * weights).sum(-1, dtype=torch.uint8)


def unpack_bits(bits: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Inverse of `pack_bits`: bool (rows, columns); ValueError for another shape."""
    expected = (rows, (columns + 7) // 8)
    if bits.dtype != torch.uint8 or tuple(bits.shape) != expected:
        raise ValueError(
            f"mask must be uint8 of shape {expected}, got {bits.dtype} of {tuple(bits.shape)}"
        )
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    padded = (bits[:, :, None] >> shifts & 1).to(torch.bool).view(rows, expected[1] * 8)
    if bool(padded[:, columns:].any()):
        raise ValueError("mask has bits set behind its last column")
    return padded[:, :columns]
