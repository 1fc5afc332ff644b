"""Examples from files: a folder, CSV, JSONL, a Hugging Face data set on disk."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lepton_train.data.clean import clean_text
from lepton_train.data.examples import Examples
from lepton_train.packages import require

_IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff"})
Path_ = str | os.PathLike[str]


def read_folder(path: Path_, *, size: tuple[int, int] | None = None, mode: str = "L") -> Examples:
    """A folder with one folder of files for each class: texts (`.txt`) or images.

    Args:
        path (str or path): holds `CLASS/FILE`; classes are in alphabetical order.
        size (tuple of 2 ints, optional): height and width that images are resized to. Default: None
            (all have the same size already).
        mode (str): colours of images as Pillow names them: "L" grey, "RGB". Default: "L".

    Returns:
        Examples: inputs are cleaned texts, or float32 (images, channels, height, width) in [0, 1].

    Raises:
        FileNotFoundError: path is no folder.
        ValueError: there is no class, or no file in one, kinds of files are mixed, images differ in
            size, or a file can't be read.
        MissingPackageError: there are images and Pillow is not installed.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"read_folder: {str(folder)!r} is not a folder")
    classes = sorted(child.name for child in folder.iterdir() if child.is_dir())
    if not classes:
        raise ValueError(
            f"read_folder: {str(folder)!r} holds no folders; labels come from folders, one a class"
        )
    files: list[Path] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        inside = sorted(f for f in (folder / name).rglob("*") if f.is_file() and f.name[0] != ".")
        if not inside:
            raise ValueError(f"read_folder: class {name!r} in {str(folder)!r} has no file")
        files += inside
        labels += [number] * len(inside)
    kinds = {file.suffix.lower() for file in files}
    inputs: Any
    if kinds == {".txt"}:
        inputs = [clean_text(_text("read_folder", file)) for file in files]
    elif kinds <= _IMAGES:
        inputs = _read_images(files, size, mode)
    else:
        odd = sorted(kinds - _IMAGES - {".txt"}) or sorted(kinds)
        raise ValueError(
            f"read_folder: files must all be .txt or all images; {str(folder)!r} holds "
            f"{', '.join(kind or 'files without suffix' for kind in odd)}"
        )
    return Examples(
        inputs, torch.tensor(labels), tuple(classes), folder.name, f"folder {folder.name}"
    )


def read_csv(
    path: Path_, *, inputs: str | Sequence[str] = "text", label: str = "label"
) -> Examples:
    """A CSV file with a header line.

    Args:
        path (str or path): UTF-8; `.tsv` files are split at tabs.
        inputs (str or sequence of str): column that holds the text, or several columns of numbers.
            Default: "text".
        label (str): column of the label: any strings are classes, in alphabetical order (whole
            numbers in their own); numbers with a fraction are numbers. Default: "label".

    Returns:
        Examples: inputs are cleaned texts, or float32 (examples, columns).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, a row is unlabelled or damaged, or there is no row.
    """
    file = _existing("read_csv", path)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
        numbered = ((rows.line_num, row) for row in rows)
        return _table("read_csv", file.name, numbered, inputs, label)


def read_jsonl(
    path: Path_, *, inputs: str | Sequence[str] = "text", label: str = "label"
) -> Examples:
    """A file with one JSON object a line.

    Args:
        path, inputs, label: as in `read_csv`, with keys for columns. Empty lines are skipped.

    Returns:
        Examples: as `read_csv`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no JSON object, or as `read_csv`.
    """
    file = _existing("read_jsonl", path)

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(_text("read_jsonl", file).splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"read_jsonl: {file.name}, line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"read_jsonl: {file.name}, line {number}: must be an object")
            yield number, row

    return _table("read_jsonl", file.name, rows(), inputs, label)


def read_hugging_face(
    path: Path_,
    *,
    split: str | None = None,
    inputs: str | Sequence[str] = "text",
    label: str = "label",
) -> Examples:
    """A data set that the library datasets has saved on disk (`save_to_disk`).

    Args:
        path (str or path): the folder.
        split (str, optional): part of a DatasetDict. Default: None (the folder is one Dataset).
        inputs, label: as in `read_csv`. Class names of a ClassLabel feature are kept.

    Returns:
        Examples: as `read_csv`.

    Raises:
        MissingPackageError: the library datasets is not installed.
        FileNotFoundError: there is no such folder.
        ValueError: the folder holds no data set or no such split, or as `read_csv`.
    """
    op = "read_hugging_face"
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{op}: {str(folder)!r} is not a folder")
    try:
        data = require("datasets", "a Hugging Face data set", "datasets").load_from_disk(
            str(folder)
        )
    except FileNotFoundError as error:
        raise ValueError(f"{op}: {str(folder)!r} holds no data set of save_to_disk") from error
    if hasattr(data, "keys"):
        if split not in data:
            raise ValueError(f"{op}: split must be one of {', '.join(data)}; got {split!r}")
        data = data[split]
    elif split is not None:
        raise ValueError(f"{op}: {str(folder)!r} has no splits; leave split out, got {split!r}")
    names = getattr(data.features.get(label), "names", None)
    examples = _table(op, folder.name, enumerate(data, 1), inputs, label, names)
    return examples


def _existing(op: str, path: Path_) -> Path:
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{op}: {str(file)!r} is not a file")
    return file


def _text(op: str, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{op}: {str(file)!r} is not UTF-8: {error.reason}") from None


def _table(
    op: str,
    name: str,
    rows: Any,
    inputs: str | Sequence[str],
    label: str,
    names: Sequence[str] | None = None,
) -> Examples:
    """Examples from numbered rows."""
    columns = [inputs] if isinstance(inputs, str) else list(inputs)
    texts: list[str] = []
    numbers: list[list[float]] = []
    labels: list[str] = []
    for number, row in rows:
        where = f"{op}: {name}, row {number}"
        for column in (*columns, label):
            if column not in row:
                known = ", ".join(str(key) for key in row if key is not None)
                raise ValueError(f"{where}: has no {column!r}; it has {known or 'nothing'}")
        value = row[label]
        if value is None or not str(value).strip():
            raise ValueError(f"{where}: is unlabelled: {label!r} is empty")
        labels.append(str(value).strip())
        if isinstance(inputs, str):
            texts.append(clean_text(str(row[inputs] or "")))
        else:
            try:
                numbers.append([float(row[column]) for column in columns])
            except (TypeError, ValueError):
                raise ValueError(f"{where}: {', '.join(columns)} must be numbers") from None
    if not labels:
        raise ValueError(f"{op}: {name} holds no rows")
    values = texts if isinstance(inputs, str) else torch.tensor(numbers)
    target, classes = _labels(labels, names)
    return Examples(values, target, classes, name, f"file {name}")


def _labels(labels: list[str], names: Sequence[str] | None) -> tuple[torch.Tensor, tuple[str, ...]]:
    if names is not None:
        return torch.tensor([int(label) for label in labels]), tuple(names)
    kinds = set(labels)
    try:
        numbers = {label: float(label) for label in kinds}
    except ValueError:
        classes = sorted(kinds)
    else:
        if not all(value.is_integer() for value in numbers.values()):
            return torch.tensor([numbers[label] for label in labels]), ()
        classes = sorted(kinds, key=lambda label: numbers[label])
    place = {label: number for number, label in enumerate(classes)}
    return torch.tensor([place[label] for label in labels]), tuple(classes)


def _read_images(files: list[Path], size: tuple[int, int] | None, mode: str) -> torch.Tensor:
    image = require("PIL.Image", "a folder of images", "pillow")
    numpy = require("numpy", "a folder of images")
    pictures: list[torch.Tensor] = []
    for file in files:
        try:
            with image.open(file) as opened:
                picture = opened.convert(mode)
                if size is not None:
                    picture = picture.resize((size[1], size[0]))
                pixels = torch.from_numpy(numpy.array(picture, dtype=numpy.float32) / 255.0)
        except (OSError, ValueError) as error:
            raise ValueError(f"read_folder: {str(file)!r} is no image: {error}") from error
        pictures.append(pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1))
        if pictures[-1].shape != pictures[0].shape:
            raise ValueError(
                f"read_folder: images must have one size; {file.name} is "
                f"{tuple(pictures[-1].shape[1:])}, the first {tuple(pictures[0].shape[1:])}; "
                "give size"
            )
    return torch.stack(pictures)
