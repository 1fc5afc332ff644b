"""Bundles that are not opened: truncated, changed, newer, with code or ways out of the folder."""

import json
import os
import pickle
import shutil
import struct
import sys

import lepton_train as lt
import pytest
import torch
from lepton_train.bundle import BundleError

FILES = ("weights.safetensors", "golden.safetensors", "manifest.json", "SHA256SUMS")


class Bomb:
    """Its pickle makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def refused(path, match):
    for read in (lt.bundle.load, lt.bundle.verify, lt.bundle.read_manifest):
        with pytest.raises(BundleError, match=match) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def change(path, edit):
    manifest = json.loads((path / "manifest.json").read_text())
    edit(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_absent_or_a_file(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match="no folder"):
        lt.bundle.load(tmp_path / "nothing")
    refused(saved / "manifest.json", "must be a folder, got a file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "incomplete, or no bundle")


@pytest.mark.parametrize("name", FILES)
def test_missing_file(saved, name):
    (saved / name).unlink()
    refused(saved, f"lacks {name}")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
def test_truncated(saved, name, share):
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[: int(len(data) * share)])
    refused(saved, "truncated|a line that is none of its|not listed")


@pytest.mark.parametrize("name", FILES[:3])
def test_one_changed_byte(saved, name):
    data = bytearray((saved / name).read_bytes())
    data[-3] ^= 1
    (saved / name).write_bytes(data)
    refused(saved, f"'{name}' is changed")


def test_changed_with_its_checksums_is_found_by_the_digest(saved, reseal):
    digest = reseal(saved)
    assert lt.bundle.verify(saved, digest=digest)
    change(saved, lambda m: m["metadata"].update(licence="none"))
    reseal(saved)
    lt.bundle.load(saved)
    for read in (lt.bundle.load, lt.bundle.verify):
        with pytest.raises(BundleError, match="digest must be"):
            read(saved, digest=digest)


@pytest.mark.parametrize("sealed", [False, True])
def test_newer_schema(saved, reseal, sealed):
    change(saved, lambda m: m.update(schema_version=99, new_field=1))
    if sealed:
        reseal(saved)
    refused(saved, "schema_version is 99, this installation reads up to 1: install a newer")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not valid JSON"),
        ("[1]", "no schema_version"),
        ('{"schema_version": 1}', "manifest.json: created: Field required"),
        ('{"schema_version": 1, "x": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "not valid JSON"),
        ('{"schema_version": 1, "a": ' + "[" * 200 + "]" * 200 + "}", "nested at most"),
    ],
)
def test_manifest_that_is_none(saved, reseal, text, match):
    (saved / "manifest.json").write_text(text)
    reseal(saved)
    refused(saved, match)


@pytest.mark.parametrize("name", ["model.pkl", "pytorch_model.bin", "assets/x.pt", "notes.txt"])
@pytest.mark.parametrize("sealed", [False, True])
def test_pickles_are_refused_and_never_read(saved, reseal, tmp_path, name, sealed):
    (saved / name).parent.mkdir(exist_ok=True)
    (saved / name).write_bytes(pickle.dumps(Bomb(str(tmp_path / "exploded"))))
    if sealed:
        reseal(saved)
    refused(saved, f"'{name}' is a pickle or may hold one, which is refused")
    assert not (tmp_path / "exploded").exists()


def test_weights_that_are_a_pickle(saved, reseal, tmp_path):
    torch.save({"0.weight": Bomb(str(tmp_path / "exploded"))}, saved / "weights.safetensors")
    reseal(saved)
    refused(saved, "'weights.safetensors' is a pickle")
    assert not (tmp_path / "exploded").exists()


def test_program_code(saved, reseal):
    (saved / "model.py").write_text("print('hello')")
    reseal(saved)
    refused(saved, "'model.py' is program code")


def test_unlisted_file(saved):
    (saved / "more.txt").write_text("?")
    refused(saved, "'more.txt' is not listed in SHA256SUMS")


@pytest.mark.parametrize(
    "name", ["../outside.txt", "/etc/hostname", "assets/../../x", "a\\b", ".", "a//b", "x\ny"]
)
def test_names_that_leave_the_folder(saved, name):
    with (saved / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    refused(saved, "is refused: it must be a relative path|a line that is none of its")


def test_symbolic_links(saved, tmp_path):
    outside = tmp_path / "outside.safetensors"
    shutil.copy(saved / "weights.safetensors", outside)
    (saved / "weights.safetensors").unlink()
    (saved / "weights.safetensors").symlink_to(outside)
    refused(saved, "'weights.safetensors' is a symbolic link")
    (saved / "weights.safetensors").unlink()
    shutil.copy(outside, saved / "weights.safetensors")
    (saved / "assets").symlink_to(tmp_path, target_is_directory=True)
    refused(saved, "'assets' is a symbolic link")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_named_pipe(saved):
    os.mkfifo(saved / "pipe")
    refused(saved, "'pipe' is no regular file")


def node(**values):
    return {"kind": "torch", "name": "Linear", "arguments": {}, "children": {}, "mask": False} | (
        values
    )


@pytest.mark.parametrize(
    ("root", "match"),
    [
        (node(name="Module"), "torch.nn.Module is not among the modules"),
        (node(name="os.system"), "is not among the modules"),
        (node(kind="lepton", name="Evil"), "'Evil'|out_features must be"),
        (node(kind="transformers", name="AutoModel"), "no model class"),
        (node(kind="transformers", name="__class__"), "no model class"),
        (
            node(kind="transformers", name="BertModel",
                 arguments={"config": {"auto_map": {}}, "attention": "sdpa"}),
            "configuration key 'auto_map' of BertModel is refused",
        ),
        (node(kind="builder", name="subprocess.run"), "which is not registered here"),
        (node(arguments={"in_features": 10**9, "out_features": 10**9}), "they lack 'weight'"),
        (node(arguments={"in_features": -1, "out_features": 2}), "refuses its arguments"),
        (node(arguments={"in_features": 3, "out_features": 2, "sudo": True}), "refuses its arg"),
        (node(kind="same", name="later"), "comes later or never"),
    ],
)  # fmt: skip
def test_architectures_that_are_refused(saved, reseal, root, match):
    pytest.importorskip("transformers", reason="needs the package transformers")
    change(saved, lambda m: m["architecture"].update(root=root))
    reseal(saved)
    for read in (lt.bundle.load, lt.bundle.verify):
        with pytest.raises(BundleError, match=match):
            read(saved)


def test_huge_layer_is_refused_before_it_is_allocated(saved, reseal):
    def grow(manifest):
        linear = manifest["architecture"]["root"]["children"]["0"]["arguments"]
        linear.update(in_features=10**8, out_features=10**8)

    change(saved, grow)
    reseal(saved)
    with pytest.raises(BundleError, match=r"'0\.weight' must have shape \(100000000, 100000000\)"):
        lt.bundle.load(saved)


def test_header_of_weights_that_lies(saved, reseal):
    data = (saved / "weights.safetensors").read_bytes()
    (saved / "weights.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + data[8:])
    reseal(saved)
    for read in (lt.bundle.load, lt.bundle.verify):
        with pytest.raises(BundleError, match="no safetensors file"):
            read(saved)


def test_wrong_golden_output_is_reported(saved, reseal):
    from safetensors.torch import load_file, save_file

    tensors = load_file(saved / "golden.safetensors")
    tensors["output.output"] += 1e-3
    save_file(tensors, saved / "golden.safetensors")
    reseal(saved)
    found = lt.bundle.verify(saved)
    assert not found
    assert found.fits
    assert "FAILED" in str(found)
    assert not found.to_dict()["ok"]


def test_a_machine_that_does_not_fit(saved, reseal):
    def demand(manifest):
        manifest["requirements"].update(
            torch="99.0", memory_bytes=10**16, device="cuda" if not torch.cuda.is_available()
            else "tpu", packages={"no_such_package": "1"}, operators=["no_such_operator"],
        )  # fmt: skip

    change(saved, demand)
    reseal(saved)
    found = lt.bundle.verify(saved)
    assert not found.fits
    failed = {check.name for check in found.checks if not check.ok}
    assert failed == {
        "torch", "no_such_package", "memory", "device", "operator no_such_operator",
        "golden outputs",
    }  # fmt: skip


def test_loading_runs_no_import_from_the_bundle(saved):
    before = set(sys.modules)
    lt.bundle.load(saved)
    assert {name for name in set(sys.modules) - before if not name.startswith("torch")} == set()
