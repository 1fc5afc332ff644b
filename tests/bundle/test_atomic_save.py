"""Saves are whole or absent; the older bundle survives errors, a full disk among them."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lepton_train as lt
import pytest
import torch
from lepton_train.bundle import publish
from torch import nn


def other(mlp):
    return nn.Sequential(nn.Linear(32, 7)).eval()


def test_versions_and_restore(saved, mlp, x, tmp_path):
    first = lt.bundle.load(saved)(x)
    lt.bundle.save(other(mlp), saved, example_inputs=x)
    assert lt.bundle.read_manifest(saved).version == 2
    assert lt.bundle.versions(saved) == {1: tmp_path / "model.v1"}
    assert torch.equal(lt.bundle.load(tmp_path / "model.v1")(x), first)
    lt.bundle.save(other(mlp), saved, example_inputs=x)
    assert list(lt.bundle.versions(saved)) == [2]
    lt.bundle.save(other(mlp), saved, example_inputs=x, keep=3)
    assert list(lt.bundle.versions(saved)) == [2, 3]
    lt.bundle.restore(saved, 2)
    assert lt.bundle.read_manifest(saved).version == 2
    assert list(lt.bundle.versions(saved)) == [3, 4]
    with pytest.raises(ValueError, match="version must be one of 3, 4; got 1"):
        lt.bundle.restore(saved, 1)
    lt.bundle.save(other(mlp), saved, example_inputs=x, keep=0)
    assert {each.name for each in tmp_path.iterdir()} == {"model"}


def test_without_renameat2(saved, mlp, x, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "_exchange", lambda one, other: False)
    lt.bundle.save(other(mlp), saved, example_inputs=x)
    assert lt.bundle.verify(saved)
    assert {each.name for each in tmp_path.iterdir()} == {"model", "model.v1"}


def test_exchange_never_leaves_the_name_empty(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not publish._exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system can't exchange two names")
    assert (tmp_path / "one" / "other").exists()
    with pytest.raises(FileNotFoundError):
        publish._exchange(tmp_path / "one", tmp_path / "absent")


def test_what_is_no_bundle_is_never_overwritten(tmp_path, mlp):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"1")
    with pytest.raises(lt.bundle.BundleError, match="exists and is no bundle; it is left"):
        lt.bundle.save(mlp, folder)
    assert (folder / "holiday.jpg").read_bytes() == b"1"
    (tmp_path / "file").write_text("x")
    with pytest.raises(lt.bundle.BundleError, match="is no folder; it is left"):
        lt.bundle.save(mlp, tmp_path / "file")


FULL = """
import resource, signal, sys, torch, lepton_train as lt
from torch import nn
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = nn.Sequential(nn.Linear(32, int(sys.argv[2])))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    lt.bundle.save(model, sys.argv[1], example_inputs=torch.ones(2, 32))
except OSError as error:
    print("OSError:", error)
"""


# The limit ends a write in the weights (64 kB of them), then in the manifest (a few kB).
@pytest.mark.parametrize(("width", "limit"), [("512", "40000"), ("4", "1500")])
def test_a_write_that_fails_leaves_the_old_bundle(saved, x, tmp_path, width, limit):
    pytest.importorskip("resource", reason="this system has no resource limits")
    before = lt.bundle.load(saved)(x)
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(saved), width, limit],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("OSError:"), done.stdout + done.stderr
    assert lt.bundle.verify(saved)
    assert torch.equal(lt.bundle.load(saved)(x), before)
    assert {each.name for each in tmp_path.iterdir()} == {"model"}


def test_full_disk(mlp, x, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("a small file system can't be mounted here")
    try:
        lt.bundle.save(mlp, disk / "model", example_inputs=x)
        before = {file.name: file.read_bytes() for file in (disk / "model").iterdir()}
        big = nn.Sequential(nn.Linear(32, 4000))
        with pytest.raises(OSError, match=r"the disk is too full: 0\.5 MB needed"):
            lt.bundle.save(big, disk / "model", example_inputs=x)
        # Full to the last byte: also the smallest file fails.
        filler = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while True:
                os.write(filler, bytes(4096))
        os.close(filler)
        with pytest.raises(OSError, match=r"too full|No space left"):
            lt.bundle.save(mlp, disk / "model", example_inputs=x)
        assert before == {file.name: file.read_bytes() for file in (disk / "model").iterdir()}
        assert lt.bundle.verify(disk / "model")
        assert {each.name for each in disk.iterdir()} == {"model", "filler"}
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_no_space_is_said_before_anything_is_written(saved, mlp, x, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="the disk is too full"):
        lt.bundle.save(mlp, saved, example_inputs=x)
    assert {each.name for each in tmp_path.iterdir()} == {"model"}


def test_read_only_folder(tmp_path, mlp, x):
    if os.geteuid() == 0:
        pytest.skip("the superuser may write everywhere")
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    with pytest.raises(PermissionError):
        lt.bundle.save(mlp, folder / "b", example_inputs=x)


def test_permissions_follow_the_umask(saved):
    umask = os.umask(0)
    os.umask(umask)
    assert saved.stat().st_mode & 0o777 == 0o777 & ~umask
    assert Path(saved / "manifest.json").stat().st_mode & 0o444 & ~umask == 0o444 & ~umask
