"""Checkpoints on a disk that is full, damaged, or somebody else's."""

import pickle
import subprocess
import sys

import lepton_train as lt
import pytest
import torch
from lepton_train.training import checkpoint

FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from lepton_train.training import checkpoint
path = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(path, {"model": {"w": torch.zeros(1_000_000)}})
except OSError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"model": {"w": torch.ones(3)}})
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "can't be written" in done.stdout
    assert "File too large" in done.stdout
    assert "the earlier checkpoint is whole" in done.stdout
    assert torch.equal(checkpoint.load(path)["model"]["w"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_what_is_no_checkpoint_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "last.pt"
    with pytest.raises(FileNotFoundError, match=r"last\.pt' is missing"):
        checkpoint.load(path)
    torch.save({"format": 1, "model": Evil()}, path)
    with pytest.raises(ValueError, match="damaged or holds more than tensors"):
        checkpoint.load(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="damaged or holds more than tensors"):
        checkpoint.load(path)
    assert not (tmp_path / "ran").exists()
    checkpoint.save(path, {"model": {"w": torch.ones(1000)}})
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.load(path)
    torch.save({"format": checkpoint.FORMAT + 1}, path)
    with pytest.raises(ValueError, match="upgrade lepton-kernels"):
        checkpoint.load(path)
    torch.save([1], path)
    with pytest.raises(ValueError, match=r"was not written by lepton_train\.fit"):
        checkpoint.load(path)


def test_best_holds_the_best_weights(tmp_path):
    values = iter([2.0, 1.0])
    x, y = torch.randn(8, 2), torch.arange(8) % 2
    model = torch.nn.Linear(2, 2)
    seen = []

    def metric(predictions, targets):
        seen.append(model.weight.detach().clone())
        return next(values)

    lt.fit(model, (x, y), (x, y), metrics=[metric], epochs=2, checkpoint=tmp_path, progress=False)
    best = checkpoint.load(tmp_path / "best.pt")
    assert torch.equal(best["model"]["weight"], seen[0])
    assert torch.equal(checkpoint.load(tmp_path / "last.pt")["model"]["weight"], seen[1])
    assert best["best"] == {"monitor": "metric", "epoch": 1, "value": 2.0}
