"""Ranges of activations for static quantisation: observers and the pass that feeds them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lepton_train.layer_errors import layers_named

Calibration = Callable[[nn.Module], Any] | Iterable[Any]

# Below this extent the kernels count a tensor as zeros; see `lepton_kernels.quantize_int8`.
_SMALLEST_RANGE = 2.0**-120
_BINS = 8192


class Observer(ABC):
    """Sees the inputs of one layer and proposes the range of real values that int8 shall cover.

    Args:
        symmetric (bool): the range will be used with a zero point of 0. Default: False.

    Attributes:
        low (float): smallest value seen, at most 0.
        high (float): largest value seen, at least 0.
        count (int): how many values were seen.
    """

    def __init__(self, symmetric: bool = False) -> None:
        self.symmetric = symmetric
        self.low = 0.0
        self.high = 0.0
        self.count = 0

    def observe(self, x: torch.Tensor) -> None:
        """Take in one batch.

        Args:
            x (Tensor): float, any shape.

        Raises:
            ValueError: x holds NaN or infinity.
        """
        if x.numel() == 0:
            return
        values = x.detach().to(torch.float32).reshape(-1)
        low, high = (bound.item() for bound in torch.aminmax(values))
        # A comparison with NaN is false.
        if not (-float("inf") < low and high < float("inf")):
            raise ValueError("calibration data must be finite, got NaN or infinity")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += values.numel()
        self._count_values(values)

    def _count_values(self, values: torch.Tensor) -> None:
        return None

    @abstractmethod
    def range(self) -> tuple[float, float]:
        """The real values (low, high) that int8 shall cover, with low <= 0 <= high."""

    def parameters(self) -> tuple[float, int]:
        """Scale and zero point for `lepton_kernels.int8_linear`.

        Returns:
            (x_scale, x_zero_point): the real size of one step, and the int8 value that stands for
            0, from -128 to 127 (0 if symmetric).
        """
        low, high = self.range()
        return quantization_parameters(low, high, self.symmetric)


class MinMaxObserver(Observer):
    """Covers everything that was seen: no clipping, and coarse steps where outliers occur.

    Example:
        >>> observer = MinMaxObserver()
        >>> observer.observe(torch.tensor([-1.0, 0.5, 4.1]))
        >>> [round(value, 4) for value in observer.parameters()]
        [0.02, -78]
    """

    def range(self) -> tuple[float, float]:
        """Smallest and largest value seen."""
        return self.low, self.high


class _HistogramObserver(Observer):
    """Counts values in equal bins over [-reach, reach]; reach doubles as larger values come."""

    def __init__(self, symmetric: bool = False) -> None:
        super().__init__(symmetric)
        self.reach = 0.0
        self.counts = torch.zeros(_BINS, dtype=torch.float64)

    def _count_values(self, values: torch.Tensor) -> None:
        largest = max(-self.low, self.high)
        if self.reach == 0.0:
            if largest == 0.0:
                return
            self.reach = largest
        while self.reach < largest:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[_BINS // 4 : 3 * _BINS // 4] = merged
            self.reach *= 2.0
        bins = torch.histc(values.cpu(), _BINS, -self.reach, self.reach)
        self.counts += bins.to(torch.float64)

    def _centres(self) -> torch.Tensor:
        width = 2.0 * self.reach / _BINS
        return (torch.arange(_BINS, dtype=torch.float64) + 0.5) * width - self.reach


class PercentileObserver(_HistogramObserver):
    """Covers the middle of the distribution and clips both tails.

    Args:
        percentile (float): how many percent of the values lie at or below the upper end, and at
            or above the lower end. Default: 99.99.
        symmetric (bool): as in `Observer`. Default: False.

    Raises:
        ValueError: percentile is not above 50 and at most 100.
    """

    def __init__(self, percentile: float = 99.99, symmetric: bool = False) -> None:
        super().__init__(symmetric)
        if not 50.0 < percentile <= 100.0:
            raise ValueError(
                f"PercentileObserver: percentile must be above 50 and at most 100, got {percentile}"
            )
        self.percentile = percentile

    def range(self) -> tuple[float, float]:
        """The two percentiles, exact to one of 8192 bins."""
        if self.reach == 0.0:
            return self.low, self.high
        below = self.counts.cumsum(0)
        total = below[-1]
        edge = torch.tensor([1.0 - self.percentile / 100.0, self.percentile / 100.0]) * total
        width = 2.0 * self.reach / _BINS
        first, last = torch.searchsorted(below, edge.to(torch.float64)).tolist()
        low = first * width - self.reach
        high = (min(last, _BINS - 1) + 1) * width - self.reach
        return max(self.low, min(low, 0.0)), min(self.high, max(high, 0.0))


class MSEObserver(_HistogramObserver):
    """Searches the range with the smallest mean square error of quantisation, clipping included.

    Args:
        steps (int): how many sizes are tried for each end of the range. Default: 64.
        symmetric (bool): as in `Observer`. Default: False.

    Source: Banner et al., "Post training 4-bit quantization of convolutional networks", 2019,
    which solves for the clipping value in closed form; here it is searched on a histogram.
    """

    def __init__(self, steps: int = 64, symmetric: bool = False) -> None:
        super().__init__(symmetric)
        self.steps = steps

    def range(self) -> tuple[float, float]:
        """The best range found: both ends scaled together, then each by itself."""
        if self.reach == 0.0:
            return self.low, self.high
        used = self.counts > 0
        centres, counts = self._centres()[used], self.counts[used]

        def error(low: float, high: float) -> float:
            scale, zero = quantization_parameters(low, high, self.symmetric)
            q = (torch.round(centres / scale) + zero).clamp(-128.0, 127.0)
            return float((((q - zero) * scale - centres) ** 2 * counts).sum())

        fractions = [step / self.steps for step in range(1, self.steps + 1)]
        together = min(fractions, key=lambda f: error(f * self.low, f * self.high))
        if self.symmetric:
            return together * self.low, together * self.high
        low = self.low * min(fractions, key=lambda f: error(f * self.low, together * self.high))
        high = self.high * min(fractions, key=lambda f: error(low, f * self.high))
        return low, high


OBSERVERS: dict[str, type[Observer]] = {
    "minmax": MinMaxObserver,
    "percentile": PercentileObserver,
    "mse": MSEObserver,
}


def quantization_parameters(low: float, high: float, symmetric: bool) -> tuple[float, int]:
    """Scale and zero point that make int8 cover [low, high], by the formula of `quantize_int8`.

    Args:
        low (float): at most 0.
        high (float): at least 0.
        symmetric (bool): zero point 0, and steps that reach the farther end.

    Returns:
        (scale, zero_point).

    Example:
        >>> quantization_parameters(0.0, 63.75, symmetric=False)
        (0.25, -128)
    """
    extent = max(-low, high) if symmetric else high - low
    if extent < _SMALLEST_RANGE:
        return 1.0, 0
    if symmetric:
        return extent / 127.0, 0
    scale = extent / 255.0
    return scale, -128 - round(low / scale)


def make_observer(kind: str, symmetric: bool = False) -> Observer:
    """An observer by its name.

    Args:
        kind (str): `"minmax"`, `"percentile"` or `"mse"`.
        symmetric (bool): as in `Observer`. Default: False.

    Raises:
        ValueError: the name is unknown.
    """
    if kind not in OBSERVERS:
        raise ValueError(f"observer must be one of {', '.join(OBSERVERS)}; got {kind!r}")
    return OBSERVERS[kind](symmetric=symmetric)


def run_calibration(model: nn.Module, calibration: Calibration) -> int:
    """Run the model over calibration data, without gradients, in its present mode.

    Args:
        model (nn.Module): the model.
        calibration (callable or iterable): a callable gets the model; the batches of an iterable
            become keyword arguments (mapping), arguments (tuple or list) or the argument.

    Returns:
        int: how many batches ran (1 for a callable).

    Raises:
        TypeError: calibration is neither callable nor iterable.
        ValueError: the iterable is empty, or a layer can't take its input.
    """
    with torch.no_grad():
        if callable(calibration) and not isinstance(calibration, nn.Module | torch.Tensor):
            calibration(model)
            return 1
        if isinstance(calibration, torch.Tensor | Mapping | str) or not isinstance(
            calibration, Iterable
        ):
            raise TypeError(
                "calibration must be an iterable of batches or a callable that gets the model, "
                f"got {type(calibration).__name__}; put a single batch in a list"
            )
        batches = 0
        for batch in calibration:
            with layers_named(model):
                if isinstance(batch, Mapping):
                    model(**batch)
                elif isinstance(batch, tuple | list):
                    model(*batch)
                else:
                    model(batch)
            batches += 1
    if batches == 0:
        raise ValueError("calibration must hold at least one batch, got none")
    return batches


def visit_inputs(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    calibration: Calibration,
    visit: Callable[[str, torch.Tensor], None],
) -> None:
    """Run the model over calibration data and show what its layers get.

    Args:
        model (nn.Module): the model; it is run in its present mode and left unchanged.
        layers (mapping): name to layer.
        calibration (callable or iterable): as in `run_calibration`.
        visit (callable): gets the name and the input of a layer at each of its calls.

    Raises:
        TypeError, ValueError: as `run_calibration`.
    """

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            visit(name, (args[0] if args else kwargs["input"]).detach())

        return hook

    handles = [
        layer.register_forward_pre_hook(hook_for(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        run_calibration(model, calibration)
    finally:
        for handle in handles:
            handle.remove()


def observe_inputs(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    calibration: Calibration,
    *,
    observer: str = "minmax",
    symmetric: bool = False,
) -> dict[str, Observer]:
    """Watch the inputs of layers while the model runs over calibration data.

    Args:
        model (nn.Module): the model; it is run in its present mode and left unchanged.
        layers (mapping): name to layer.
        calibration (callable or iterable): as in `run_calibration`.
        observer (str): as in `make_observer`. Default: "minmax".
        symmetric (bool): as in `Observer`. Default: False.

    Returns:
        dict: name to observer; one whose `count` is 0 was never reached.

    Raises:
        ValueError: a layer got NaN or infinity, the observer is unknown, there is no batch.
        TypeError: calibration has the wrong type.
    """
    observers = {name: make_observer(observer, symmetric) for name in layers}

    def observe(name: str, x: torch.Tensor) -> None:
        try:
            observers[name].observe(x)
        except ValueError as error:
            raise ValueError(f"{error} at the input of {name!r}") from None

    visit_inputs(model, layers, calibration, observe)
    return observers
