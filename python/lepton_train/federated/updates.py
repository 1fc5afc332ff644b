"""Updates of clients as arrays to send: whole, or compressed with error feedback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

import lepton_kernels as lk
from lepton_train.federated.average import State, fedavg, shares_of

COMPRESSIONS = (None, "bf16", "int8")
_BLOCK = 256


class UpdateCodec:
    """Turns a client's state into arrays and averages those of many clients.

    Without compression the arrays are the tensors of the state, as Flower's examples send them.
    With it they are the change against the state that the server sent: one flat array of codes,
    its scales, then what is no float. What compression rounds away is kept and added to the next
    change (error feedback), so it is delayed and never lost.

    Args:
        template (mapping): a state dict; its keys, shapes and dtypes.
        compression (str, optional): None, "bf16" (half the bytes) or "int8" (a quarter, one
            scale for each 256 values). Default: None.

    Raises:
        ValueError: unknown compression.

    Source: error feedback as in Karimireddy et al., 2019, arXiv 1901.09847.

    Example:
        >>> before, after = {"w": torch.zeros(300)}, {"w": torch.linspace(-1, 1, 300)}
        >>> codec = UpdateCodec(before, "int8")
        >>> arrays = codec.encode(after, before)
        >>> [(array.dtype.name, array.size) for array in arrays]
        [('int8', 304), ('float32', 2)]
        >>> bool((codec.average([arrays], None, before)["w"] - after["w"]).abs().max() < 0.01)
        True
    """

    def __init__(
        self, template: Mapping[str, torch.Tensor], compression: str | None = None
    ) -> None:
        if compression not in COMPRESSIONS:
            raise ValueError(
                f"UpdateCodec: compression must be None, 'bf16' or 'int8', got {compression!r}"
            )
        self.compression = compression
        self.template = {name: value.detach() for name, value in template.items()}
        self._floats = [name for name, v in self.template.items() if v.is_floating_point()]
        self._others = [name for name in self.template if name not in set(self._floats)]
        self.residual: torch.Tensor | None = None

    def _flat(self, state: Mapping[str, torch.Tensor], factor: float = 1.0) -> torch.Tensor:
        tensors = [state[name].detach().float().cpu() for name in self._floats]
        return lk.bucket_flatten(tensors, dtype=torch.float32, factor=factor)

    def encode(
        self, state: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]
    ) -> list[np.ndarray]:
        """Arrays to send.

        Args:
            state (mapping): after local training.
            reference (mapping): as the server sent it.

        Returns:
            list of ndarray: in the form of this codec.
        """
        if self.compression is None:
            return [_to_numpy(state[name]) for name in self.template]
        change = self._flat(state).sub_(self._flat(reference))
        if self.residual is None:
            self.residual = torch.zeros_like(change)
        others = [_to_numpy(state[name]) for name in self._others]
        if self.compression == "int8":
            codes, scale = lk.bucket_quantize(change, residual=self.residual, block=_BLOCK)
            return [codes.numpy(), scale.numpy(), *others]
        change += self.residual
        rounded = change.to(torch.bfloat16)
        self.residual = change - rounded.float()
        return [rounded.view(torch.int16).numpy(), *others]

    def average(
        self,
        updates: Sequence[Sequence[np.ndarray]],
        weights: Sequence[float] | None,
        reference: Mapping[str, torch.Tensor],
    ) -> State:
        """State after the weighted mean of clients' arrays.

        Args:
            updates (sequence): what `encode` gave, of each client.
            weights (sequence of float, optional): as in `fedavg`.
            reference (mapping): the state that the clients started from.

        Returns:
            dict: the new state.

        Raises:
            ValueError: arrays that do not have this codec's form, or are not finite.
        """
        shares = shares_of("UpdateCodec.average", len(updates), weights)
        heads = {None: 0, "bf16": 1, "int8": 2}[self.compression]
        for index, update in enumerate(updates):
            self._check(index, update, heads)
        rest = self._others if heads else list(self.template)
        plain = [
            {
                name: _from_numpy(array, self.template[name])
                for name, array in zip(rest, update[heads:], strict=True)
            }
            for update in updates
        ]
        result = fedavg(plain, shares)
        if heads:
            total = self._flat(reference)
            for update, share in zip(updates, shares, strict=True):
                self._add(total, update, share)
            tensors = [torch.empty(self.template[name].shape) for name in self._floats]
            lk.bucket_unflatten_(tensors, total)
            for name, tensor in zip(self._floats, tensors, strict=True):
                if not torch.isfinite(tensor).all():
                    raise ValueError(f"UpdateCodec.average: {name!r} of an update must be finite")
                result[name] = tensor.to(self.template[name].dtype)
        return {name: result[name] for name in self.template}

    def _add(self, total: torch.Tensor, update: Sequence[np.ndarray], share: float) -> None:
        codes = torch.from_numpy(np.ascontiguousarray(update[0]))
        if self.compression == "int8":
            scale = torch.from_numpy(np.ascontiguousarray(update[1]))
            # Decodes, weights and adds in one pass.
            lk.bucket_dequantize_(total, codes, scale, block=_BLOCK, factor=share, accumulate=True)
        else:
            total.add_(codes.view(torch.bfloat16).float(), alpha=share)

    def _check(self, index: int, update: Sequence[np.ndarray], heads: int) -> None:
        rest = self._others if heads else list(self.template)
        if len(update) != heads + len(rest):
            raise ValueError(
                f"UpdateCodec: updates[{index}] must hold {heads + len(rest)} arrays, "
                f"got {len(update)}"
            )
        expected: list[tuple[str, tuple[int, ...]]] = []
        if heads:
            size = self._flat(self.template).numel()
            expected.append(({1: "int16", 2: "int8"}[heads], (size,)))
            if heads == 2:
                expected.append(("float32", ((size + _BLOCK - 1) // _BLOCK,)))
        expected += [
            (_to_numpy(self.template[name]).dtype.name, tuple(self.template[name].shape))
            for name in rest
        ]
        for place, (array, (dtype, shape)) in enumerate(zip(update, expected, strict=True)):
            if array.dtype.name != dtype or array.shape != shape:
                raise ValueError(
                    f"UpdateCodec: updates[{index}][{place}] must be {dtype} of shape {shape}, "
                    f"got {array.dtype.name} of shape {array.shape}"
                )


def bytes_of(arrays: Sequence[np.ndarray]) -> int:
    """Bytes that arrays take on the wire."""
    return sum(array.nbytes for array in arrays)


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    value = tensor.detach().cpu().contiguous()
    # numpy has no bfloat16.
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy().copy()


def _from_numpy(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.array(array, order="C")).reshape(like.shape).to(like.dtype)


def state_from_arrays(arrays: Sequence[np.ndarray], template: Mapping[str, torch.Tensor]) -> State:
    """A state dict from the arrays of its tensors, in the order of the template.

    Raises:
        ValueError: another number of arrays, or other shapes.
    """
    if len(arrays) != len(template):
        raise ValueError(f"state_from_arrays: must get {len(template)} arrays, got {len(arrays)}")
    state = {}
    for array, (name, like) in zip(arrays, template.items(), strict=True):
        if tuple(array.shape) != tuple(like.shape):
            raise ValueError(
                f"state_from_arrays: {name!r} must have shape {tuple(like.shape)}, "
                f"got {tuple(array.shape)}"
            )
        state[name] = _from_numpy(array, like)
    return state
