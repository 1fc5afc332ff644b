"""`save`, `load` and `verify`."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lepton_train.bundle import folder, golden, publish
from lepton_train.bundle.architecture import Builder, build, describe, tie
from lepton_train.bundle.errors import BundleError
from lepton_train.bundle.folder import ASSETS, GOLDEN, MANIFEST, WEIGHTS, Contents
from lepton_train.bundle.layers import layers_of
from lepton_train.bundle.machine import Check, as_dict, fit, requirements_of
from lepton_train.bundle.manifest import Architecture, Feature, Manifest, Metadata
from lepton_train.bundle.preprocess import Preprocessing
from lepton_train.bundle.weights import header_of, load_weights, state_of
from lepton_train.packages import require
from lepton_train.report import text_table


@dataclass(frozen=True)
class Verification:
    """What `verify` found; true where all is well; `str()` gives a table.

    Args:
        path (str): the folder.
        digest (str): stands for the whole bundle; keep it elsewhere to find later changes.
        checks (list of Check): files, machine and golden outputs.
    """

    path: str
    digest: str
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    @property
    def fits(self) -> bool:
        """Whether this machine has what the bundle needs; golden outputs aside."""
        return all(check.ok for check in self.checks if not check.name.startswith("golden"))

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return {
            "path": self.path,
            "digest": self.digest,
            "ok": self.ok,
            "fits": self.fits,
            "checks": [as_dict(check) for check in self.checks],
        }

    def __str__(self) -> str:
        rows = [
            (check.name, check.required, check.found, "ok" if check.ok else "FAILED")
            for check in self.checks
        ]
        return text_table(("check", "required", "found", ""), rows)


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, Any] | Metadata | None = None,
    example_inputs: Any = None,
    builder: str | None = None,
    config: Mapping[str, Any] | None = None,
    files: Mapping[str, str | os.PathLike[str]] | None = None,
    input_statistics: Iterable[Feature] | None = None,
    keep: int = 1,
) -> str:
    """Write a model as a bundle: weights, manifest, golden outputs, checksums.

    The new folder is complete, synced and proven (loaded once, its outputs compared) before it
    takes the place of an older bundle in one step; that one stays as `NAME.vVERSION`. After any
    error, a full disk too, the older bundle is untouched and nothing else is left.

    Args:
        model (nn.Module): of `torch.nn` and `lepton_kernels.nn` modules, a Hugging Face model, or
            one made by a registered builder; quantised, pruned or packed as you like.
        path (str or path): the folder to make.
        metadata (mapping or Metadata, optional): name, description, licence, provenance, metrics,
            preprocessing, labels; other keys are kept under `extra`. Default: None.
        example_inputs (optional): one batch of real inputs, dimension 0 the batch: the argument, a
            tuple or list of arguments, or a mapping of keyword arguments. Default: None (random
            ones, where the first layer or the configuration tells their shape).
        builder (str, optional): name given to `register_builder`, for a class of your own.
            Default: None.
        config (mapping, optional): keyword arguments of the builder. Default: None.
        files (mapping, optional): name in `assets/` -> file to copy, such as a tokenizer.
            Default: None.
        input_statistics (iterable of Feature, optional): of the training inputs, from
            `lepton_train.serve.drift.statistics`, for the server's watch on drift.
            Default: None.
        keep (int): older versions to keep beside the bundle. Default: 1.

    Returns:
        str: digest (SHA-256) of the bundle; give it to `verify` to find any later change.

    Raises:
        BundleError: a module that can't be named, a model that does not reproduce itself, `path`
            taken by something else.
        OSError: it can't be written, such as a full disk.
        TypeError, ValueError: wrong arguments.

    Example:
        >>> import tempfile, lepton_train as lt
        >>> model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     digest = lt.bundle.save(model, f"{folder}/mlp", metadata={"licence": "MIT"})
        ...     bool(lt.bundle.verify(f"{folder}/mlp", digest=digest))
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"bundle.save: model must be a torch.nn.Module, got {type(model).__name__}")
    if keep < 0:
        raise ValueError(f"bundle.save: keep must be at least 0, got {keep}")
    stated = Metadata.of(metadata)
    assets = {f"{ASSETS}/{name}": Path(source) for name, source in (files or {}).items()}
    for name, source in assets.items():
        folder.check_name(name)
        if not source.is_file():
            raise FileNotFoundError(f"bundle.save: files[{name!r}]: no file {str(source)!r}")
    Preprocessing(stated.preprocessing).check(assets)
    target = Path(path).absolute()
    version = publish.check_target(target)
    architecture = describe(model, builder, config)
    state = state_of(model, architecture.ties)
    example = golden.guess_inputs(model) if example_inputs is None else example_inputs
    torch_save = require("safetensors.torch", "a bundle", "safetensors", extra="bundle").save_file
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    with publish.staging(target) as staged:
        _check_space(staged, size + sum(source.stat().st_size for source in assets.values()))
        try:
            torch_save(state, staged / WEIGHTS, metadata={"format": "pt"})
            loaded = _assemble(staged, architecture, None)
            made, tensors = golden.make_golden(model, loaded, example)
            torch_save(tensors, staged / GOLDEN)
        except require("safetensors", "a bundle", extra="bundle").SafetensorError as error:
            raise OSError(f"bundle.save: {target} can't be written: {error}") from error
        for name, source in assets.items():
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, staged / name)
        manifest = Manifest(
            version=version + 1,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            metadata=stated,
            architecture=architecture,
            layers=layers_of(model),
            requirements=requirements_of(loaded, (staged / WEIGHTS).stat().st_size),
            golden=made,
            input_statistics=list(input_statistics or ()),
            files=sorted(assets),
        )
        text = manifest.model_dump_json(indent=1) + "\n"
        (staged / MANIFEST).write_text(text, encoding="utf-8")
        folder.write_checksums(staged)
        digest = folder.open_folder(staged).digest
        publish.publish(staged, target, version, keep)
    return digest


def _check_space(staged: Path, size: int) -> None:
    free = shutil.disk_usage(staged).free
    if free < size:
        raise OSError(
            f"bundle.save: the disk is too full: {size / 1e6:.1f} MB needed, "
            f"{free / 1e6:.1f} MB free"
        )


def load(
    path: str | os.PathLike[str],
    *,
    builders: Mapping[str, Builder] | None = None,
    digest: str | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Load a bundle's model, packed for this machine; no code from the bundle is run.

    Args:
        path (str or path): the folder.
        builders (mapping, optional): name -> function that builds the model, besides those given
            to `register_builder`. Default: None.
        digest (str, optional): what `save` returned. Default: None (not compared).
        device (str or torch.device): where the model goes. Default: "cpu".

    Returns:
        nn.Module: in evaluation mode.

    Raises:
        FileNotFoundError: there is no such folder.
        BundleError: truncated, changed, of a newer schema, with pickles, links or names that leave
            the folder, or with weights that do not fit the architecture.

    Example:
        >>> import tempfile, lepton_train as lt
        >>> model = nn.Sequential(nn.Linear(64, 32))
        >>> _ = lt.quantize_(model)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = lt.bundle.save(model, f"{folder}/b")
        ...     again = lt.bundle.load(f"{folder}/b")
        >>> x = torch.randn(3, 64)
        >>> torch.equal(model(x), again(x))
        True
    """
    return load_contents(folder.open_folder(path, digest), builders).to(device)


def load_contents(contents: Contents, builders: Mapping[str, Builder] | None = None) -> nn.Module:
    """Load the model of a bundle whose files have been checked."""
    return _assemble(contents.root, contents.manifest.architecture, builders)


def _assemble(
    root: Path, architecture: Architecture, builders: Mapping[str, Builder] | None
) -> nn.Module:
    header = header_of(root / WEIGHTS)
    model = build(architecture, builders, header)
    load_weights(model, root / WEIGHTS, architecture.ties)
    tie(model, architecture.ties)
    return model.eval()


def verify(
    path: str | os.PathLike[str],
    *,
    builders: Mapping[str, Builder] | None = None,
    digest: str | None = None,
) -> Verification:
    """Check a bundle before it is used: files, this machine, golden outputs.

    Args:
        path (str or path): the folder.
        builders (mapping, optional): as in `load`. Default: None.
        digest (str, optional): what `save` returned. Default: None (not compared).

    Returns:
        Verification: true where it fits this machine and reproduces its outputs.

    Raises:
        FileNotFoundError: there is no such folder.
        BundleError: as `load`: what must not be opened is an error, no report.
    """
    contents = folder.open_folder(path, digest)
    manifest = contents.manifest
    count = f"{len(contents.checksums)} files"
    checks = [
        Check("files", "SHA-256 of each", f"{count}, all as listed", True),
        *fit(manifest.requirements),
    ]
    if all(check.ok for check in checks):
        checks += _golden_checks(contents, builders)
    else:
        checks.append(Check("golden outputs", "reproduced", "not run: does not fit", False))
    return Verification(str(path), contents.digest, checks)


def _golden_checks(contents: Contents, builders: Mapping[str, Builder] | None) -> list[Check]:
    manifest = contents.manifest
    inputs, outputs = read_golden(contents)
    got = golden.run(load_contents(contents, builders), manifest.golden.call, inputs)
    checks = []
    for name, (text, ok) in golden.compare(manifest.golden, outputs, got).items():
        limit = manifest.golden.tolerance.get(name, 0.0)
        checks.append(Check(f"golden {name}", f"within {limit:.3g}", text, ok))
    return checks


def read_golden(contents: Contents) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Golden inputs and outputs of a bundle whose files have been checked.

    Raises:
        BundleError: they are not what the manifest says.
    """
    load_file = require("safetensors.torch", "a bundle", "safetensors", extra="bundle").load_file
    try:
        tensors = load_file(contents.root / GOLDEN)
    except Exception as error:
        raise BundleError(f"bundle: {GOLDEN} can't be read: {error}") from None
    stated = contents.manifest.golden
    parts = []
    for prefix, listed in (("input", stated.inputs), ("output", stated.outputs)):
        part = {}
        for each in listed:
            tensor = tensors.get(f"{prefix}.{each.name}")
            if tensor is None or list(tensor.shape) != each.shape:
                raise BundleError(
                    f"bundle: {GOLDEN} lacks {prefix}.{each.name} as the manifest has it"
                )
            part[each.name] = tensor
        parts.append(part)
    return parts[0], parts[1]


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Manifest of a bundle, after all its files have been checked.

    Args:
        path (str or path): the folder.

    Returns:
        Manifest: what the bundle says of itself.

    Raises:
        FileNotFoundError: there is no such folder.
        BundleError: as `load`.
    """
    return folder.open_folder(path).manifest


def versions(path: str | os.PathLike[str]) -> dict[int, Path]:
    """Older versions kept beside a bundle.

    Args:
        path (str or path): the bundle.

    Returns:
        dict: version to folder, oldest first; empty where there are none.
    """
    return publish.backups(Path(path).absolute())


def restore(path: str | os.PathLike[str], version: int) -> None:
    """Put an older version back in its place; the present one is kept as a version of its own.

    Args:
        path (str or path): the bundle.
        version (int): one of `versions(path)`.

    Raises:
        ValueError: there is no such version.
        BundleError: it is damaged; the present bundle stays.
    """
    target = Path(path).absolute()
    kept = publish.backups(target)
    if version not in kept:
        listed = ", ".join(map(str, kept)) or "none"
        raise ValueError(f"bundle.restore: version must be one of {listed}; got {version}")
    folder.open_folder(kept[version])
    present = publish.check_target(target)
    with publish.staging(target) as staged:
        shutil.copytree(kept[version], staged, dirs_exist_ok=True)
        publish.publish(staged, target, present, keep=len(kept) + 1)
    shutil.rmtree(kept[version])
