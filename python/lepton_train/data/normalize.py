"""Normalisation: statistics of the training data, applied to every part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lepton_train.data.examples import Examples


@dataclass(frozen=True)
class Standardizer:
    """Subtracts a mean and divides by a standard deviation.

    Args:
        mean (Tensor): float, broadcasts against one input.
        std (Tensor): float, the same shape, positive.

    Example:
        >>> data = Examples(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]))
        >>> Standardizer.of(data)(data).inputs.tolist()
        [[-1.0], [1.0]]
    """

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, data: Examples) -> Standardizer:
        """Statistics of the training examples: by channel for images, by column for vectors.

        Args:
            data (Examples): the training part alone, or the test data leak into training.

        Returns:
            Standardizer: to be called with any part.

        Raises:
            TypeError: the inputs are no float tensor.
            ValueError: there are no examples.
        """
        x = data.inputs
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            raise TypeError("Standardizer.of: inputs must be a float Tensor")
        if len(data) == 0:
            raise ValueError("Standardizer.of: data must hold at least one example, got none")
        over = (0, *range(2, x.ndim))
        values = x.double()
        mean = values.mean(over, keepdim=True)[0]
        std = values.std(over, keepdim=True, unbiased=False)[0]
        # A constant column stays 0, not NaN.
        std = torch.where(std > 1e-12, std, torch.ones_like(std))
        return cls(mean.to(x.dtype), std.to(x.dtype))

    def __call__(self, data: Any) -> Any:
        """Examples or a tensor, standardised; the argument stays as it is."""
        if isinstance(data, Examples):
            assert isinstance(data.inputs, torch.Tensor)
            return data.with_inputs(self(data.inputs))
        return (data - self.mean.to(data.device)) / self.std.to(data.device)
