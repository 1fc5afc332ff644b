import pytest
import torch
from lepton_train.calibration import (
    OBSERVERS,
    MinMaxObserver,
    MSEObserver,
    PercentileObserver,
    make_observer,
    quantization_parameters,
)


def error(observer, x):
    return quantization_error(*observer.parameters(), x)


def quantization_error(scale, zero, x):
    q = (torch.round(x / scale) + zero).clamp(-128, 127)
    return ((q - zero) * scale - x).square().mean().item()


@pytest.mark.parametrize("kind", OBSERVERS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_parameters_are_valid(kind, symmetric):
    torch.manual_seed(0)
    observer = make_observer(kind, symmetric)
    x = torch.randn(5000) + 1.0
    observer.observe(x[:10].to(torch.bfloat16))
    observer.observe(x.reshape(50, 100))
    scale, zero = observer.parameters()
    assert scale > 0
    assert -128 <= zero <= 127
    assert zero == 0 or not symmetric
    assert observer.count == 5010
    assert error(observer, x) < 4 * (scale**2 / 12)


def test_minmax_agrees_with_quantize_int8():
    import lepton_kernels as lk

    x = torch.randn(1000) + 0.5
    for symmetric in (False, True):
        observer = MinMaxObserver(symmetric)
        observer.observe(x)
        _, *expected = lk.quantize_int8(x, dim=None, symmetric=symmetric)
        got = observer.parameters()
        assert got[0] == pytest.approx(expected[0].item(), rel=1e-6)
        assert got[1] == (0 if symmetric else expected[1].item())


def test_percentile_ignores_rare_outliers():
    torch.manual_seed(0)
    x = torch.rand(200_000)
    x[0] = 40.0
    observer = PercentileObserver(99.9)
    observer.observe(x)
    low, high = observer.range()
    assert low == 0.0
    assert 0.95 < high < 1.1


@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_beats_minmax_with_outliers(symmetric):
    torch.manual_seed(0)
    x = torch.randn(100_000)
    x[:3] = torch.tensor([30.0, -20.0, 25.0])
    observers = [MinMaxObserver(symmetric), MSEObserver(symmetric=symmetric)]
    for observer in observers:
        observer.observe(x)
    best = min(
        quantization_error(*quantization_parameters(low, high, symmetric), x)
        for low in torch.linspace(-20.0, -2.0, 25).tolist()
        for high in torch.linspace(2.0, 30.0, 25).tolist()
    )
    # The search sees 8192 bins and 64 sizes of each end: half a step of either off the optimum.
    assert error(observers[1], x) < 1.05 * best
    assert best < error(observers[0], x)


def test_histogram_grows_without_losing_values():
    observer = PercentileObserver()
    for size in (0.01, 1.0, 300.0, 2.0):
        observer.observe(torch.linspace(-size, size, 1001))
    assert observer.counts.sum().item() == observer.count == 4004
    assert observer.reach >= 300.0


@pytest.mark.parametrize("kind", OBSERVERS)
def test_zeros_and_empty(kind):
    observer = make_observer(kind)
    observer.observe(torch.zeros(0))
    observer.observe(torch.zeros(10))
    assert observer.parameters() == (1.0, 0)
    assert observer.count == 10


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(bad):
    with pytest.raises(ValueError, match="must be finite"):
        MinMaxObserver().observe(torch.tensor([1.0, bad]))


def test_bad_arguments():
    with pytest.raises(ValueError, match="observer must be one of"):
        make_observer("median")
    with pytest.raises(ValueError, match="percentile must be above 50"):
        PercentileObserver(20)
