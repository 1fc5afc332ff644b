"""Faults that the emulator must find, in any order of warps; and their twins that are sound."""

import pytest
import torch

FAULTS = {
    "mirror": {"race"},  # no barrier
    "reuse": {"race"},  # no second barrier
    "warp_mirror": {"race"},  # no __syncwarp
    "pipeline": {"missing_wait"},
    "wait_without_barrier": {"race"},
    "beyond_global": {"out_of_bounds"},
    "beyond_shared": {"out_of_bounds"},
    "unwritten": {"uninitialised"},
    "split_barrier": {"deadlock"},
    "two_barriers": {"divergence"},
    "divergent_shuffle": {"divergence"},
    "lane_that_left": {"divergence", "deadlock"},  # it leaves before the others come, or after
    "misaligned_vector": {"misaligned"},
    "writes_input": {"read_only"},
    "blocks_collide": {"race"},
    "last_block_reduces": {"race"},  # no __threadfence
    "producer_consumer": {"race", "deadlock"},  # the producer does not wait
}
SEEDS = range(6)
# What a missing barrier may show as well, and what does not end the launch.
CONSEQUENCES = {"race", "uninitialised", "missing_wait"}


def run(simt, name, fault, seed, **options):
    x = torch.randn(1024)
    y = torch.zeros(1024)
    report = simt.call(
        f"simt_planted_{name}", x, simt.out(y), x.numel() - 1, int(fault), seed=seed, **options
    )
    return x, y, report


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(simt, name):
    for seed in SEEDS:
        if name == "beyond_global":
            x, y = torch.randn(200), torch.zeros(200)
            report = simt.call(
                "simt_planted_beyond_global", x, simt.out(y), 200, 1, seed=seed, allow=FAULTS[name]
            )
        else:
            *_, report = run(
                simt, name, True, seed, allow=FAULTS[name] | CONSEQUENCES, conflicts_allowed=99
            )
        assert report.kinds & FAULTS[name], f"{name}, seed {seed}: {report.text()}"
        assert all(finding["message"] for finding in report.findings)
        assert all("planted.cpp:" in finding["place"] for finding in report.findings)


@pytest.mark.parametrize("name", FAULTS)
def test_sound_twin_passes(simt, name):
    for seed in SEEDS:
        run(simt, name, False, seed)


def test_sound_twins_compute(simt):
    x, y, _ = run(simt, "mirror", False, 1)
    assert torch.equal(y[:64], x[:64].flip(0))
    x, y, _ = run(simt, "pipeline", False, 1)
    want = sum(tile.flip(0)[:64] for tile in x.view(4, 256))
    assert torch.allclose(y[:64], want, atol=1e-5)
    x, y, _ = run(simt, "last_block_reduces", False, 1)
    assert y[1] == 5
    x, y, _ = run(simt, "producer_consumer", False, 2)
    assert torch.allclose(y[:32], 3 * x[:32].flip(0) + 3, atol=1e-5)


@pytest.mark.parametrize("name", ["column_access", "rows_for_ldmatrix"])
def test_bank_conflicts_are_counted(simt, name):
    *_, sound = run(simt, name, False, 3)
    assert sound.shared_conflicts == 0
    *_, report = run(simt, name, True, 3, conflicts_allowed=10_000)
    # 32 lanes in one bank take 32 passes for 1, twice; eight rows 128 bytes apart 8 for 1.
    assert report.shared_conflicts == {"column_access": 62, "rows_for_ldmatrix": 28}[name]
    with pytest.raises(AssertionError, match=r"bank conflicts at planted\.cpp"):
        run(simt, name, True, 3)


def test_coalescing_is_counted(simt):
    *_, report = run(simt, "mirror", False, 0)
    assert report.total("global_sectors") == report.total("global_sectors_ideal") == 16
    *_, report = run(simt, "misaligned_vector", False, 0)
    assert report.total("global_sectors") == report.total("global_sectors_ideal")


def test_a_report_names_the_tensor_and_the_line(simt):
    x, y = torch.randn(200), torch.zeros(200)
    report = simt.call(
        "simt_planted_beyond_global", x, simt.out(y), 200, 1, allow=("out_of_bounds",)
    )
    [finding] = report.findings
    assert "argument 0 (torch.float32 (200,)), which has 800" in finding["message"]
