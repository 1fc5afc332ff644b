"""A bundle as files: what may lie in the folder, and checksums of all of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lepton_train.bundle.errors import BundleError
from lepton_train.bundle.manifest import SCHEMA_VERSION, Manifest, parse

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.safetensors"
CHECKSUMS = "SHA256SUMS"
ASSETS = "assets"

_PICKLE_SUFFIXES = frozenset(
    (".pkl", ".pickle", ".pt", ".pth", ".pt2", ".bin", ".ckpt", ".joblib", ".dill", ".npy", ".npz")
)
_CODE_SUFFIXES = frozenset((".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh"))
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]*")
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_MOST_FILES = 10_000
_MOST_CHECKSUM_BYTES = 4 << 20


@dataclass(frozen=True)
class Contents:
    """A bundle whose files have all been checked.

    Args:
        root (Path): the folder.
        manifest (Manifest): as read.
        checksums (dict): relative path -> SHA-256, of every file but the list itself.
        digest (str): SHA-256 of the list, which stands for the whole bundle.
    """

    root: Path
    manifest: Manifest
    checksums: dict[str, str]
    digest: str


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()


def write_checksums(root: Path) -> str:
    """Write `SHA256SUMS` over all files of a folder, as `sha256sum` does; returns its digest."""
    names = sorted(name for name in files_of(root) if name != CHECKSUMS)
    text = "".join(f"{sha256_of(root / name)}  {name}\n" for name in names)
    (root / CHECKSUMS).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def check_name(name: str) -> str:
    """A relative path that stays inside the bundle.

    Raises:
        BundleError: absolute, with `..`, a backslash, or characters beyond A-Z a-z 0-9 . _ - space.

    Example:
        >>> check_name("assets/tokenizer.json")
        'assets/tokenizer.json'
    """
    if not all(_NAME.fullmatch(part) and not part.endswith((".", " ")) for part in name.split("/")):
        raise BundleError(
            f"bundle: file name {name!r} is refused: it must be a relative path inside the bundle, "
            "of letters, digits, '.', '_', '-' and spaces"
        )
    return name


def files_of(root: Path) -> list[str]:
    """Relative paths of all files below a folder.

    Raises:
        BundleError: a symbolic link, a device, a socket, a strange name, or too many files.
    """
    found: list[str] = []
    pending = [""]
    while pending:
        folder = pending.pop()
        for entry in sorted(os.scandir(root / folder), key=lambda each: each.name):
            name = check_name(f"{folder}/{entry.name}" if folder else entry.name)
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                raise BundleError(f"bundle: {name!r} is a symbolic link, which is refused")
            if stat.S_ISDIR(mode):
                pending.append(name)
            elif stat.S_ISREG(mode):
                found.append(name)
            else:
                raise BundleError(f"bundle: {name!r} is no regular file, which is refused")
            if len(found) > _MOST_FILES:
                raise BundleError(f"bundle: holds more than {_MOST_FILES} files")
    return found


def refuse_code(root: Path, names: list[str]) -> None:
    """Refuse files that hold, or may hold, code: pickles by suffix and by content, programs.

    Raises:
        BundleError: naming the file.
    """
    for name in names:
        path = root / name
        if path.suffix.lower() in _PICKLE_SUFFIXES or _is_pickle(path):
            raise BundleError(
                f"bundle: {name!r} is a pickle or may hold one, which is refused: "
                "a pickle runs code when it is read; weights are safetensors only"
            )
        if path.suffix.lower() in _CODE_SUFFIXES:
            raise BundleError(f"bundle: {name!r} is program code, which is refused")


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4)
    if len(head) >= 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
        # A safetensors header of that length would begin so too; its 9th byte is always '{'.
        with path.open("rb") as file:
            return file.read(9)[8:] != b"{"
    if head == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(path) as archive:
                return any(each.endswith((".pkl", ".pickle")) for each in archive.namelist())
        except zipfile.BadZipFile:
            return True
    return False


def open_folder(path: str | os.PathLike[str], digest: str | None = None) -> Contents:
    """Check every file of a bundle and read its manifest; nothing of it is run.

    Args:
        path (str or path): the folder.
        digest (str, optional): what `save` returned, kept elsewhere: also finds a bundle whose
            checksums were changed along with its files. Default: None.

    Raises:
        FileNotFoundError: there is no such folder.
        BundleError: whatever is wrong with it.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"bundle: no folder {str(root)!r}")
    if not root.is_dir():
        raise BundleError(f"bundle: {str(root)!r} must be a folder, got a file")
    names = files_of(root)
    refuse_code(root, names)
    for needed in (MANIFEST, CHECKSUMS, WEIGHTS, GOLDEN):
        if needed not in names:
            raise BundleError(
                f"bundle: {str(root)!r} lacks {needed}: it is incomplete, or no bundle"
            )
    _refuse_newer(root / MANIFEST)
    checksums, own = _read_checksums(root)
    for name in checksums:
        if name not in names:
            raise BundleError(f"bundle: {name!r} is listed in {CHECKSUMS} but missing")
    for name in names:
        if name != CHECKSUMS and name not in checksums:
            raise BundleError(f"bundle: {name!r} is not listed in {CHECKSUMS}, which is refused")
    for name, expected in checksums.items():
        got = sha256_of(root / name)
        if got != expected:
            raise BundleError(
                f"bundle: {name!r} is {_what_happened(root / name)}: SHA-256 must be "
                f"{expected[:16]}..., got {got[:16]}..."
            )
    if digest is not None and digest != own:
        raise BundleError(f"bundle: digest must be {digest}, got {own}: another bundle, or changed")
    data = (root / MANIFEST).read_bytes()
    # The bytes that are parsed are the ones that were checked.
    if hashlib.sha256(data).hexdigest() != checksums[MANIFEST]:
        raise BundleError("bundle: manifest.json changed while it was read")
    return Contents(root, parse(data), checksums, own)


def _refuse_newer(path: Path) -> None:
    """A newer schema is said so, before its checksums or new fields make other errors."""
    try:
        found = json.loads(path.read_bytes())["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if isinstance(found, int) and found > SCHEMA_VERSION:
        parse(path.read_bytes())


def _read_checksums(root: Path) -> tuple[dict[str, str], str]:
    if (root / CHECKSUMS).stat().st_size > _MOST_CHECKSUM_BYTES:
        raise BundleError(f"bundle: {CHECKSUMS} must be below {_MOST_CHECKSUM_BYTES} bytes")
    data = (root / CHECKSUMS).read_bytes()
    checksums: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise BundleError(f"bundle: {CHECKSUMS} has a line that is none of its: {line[:80]!r}")
        name = check_name(match[2])
        if name in checksums:
            raise BundleError(f"bundle: {CHECKSUMS} lists {name!r} twice")
        checksums[name] = match[1]
    for needed in (MANIFEST, WEIGHTS, GOLDEN):
        if needed not in checksums:
            raise BundleError(f"bundle: {CHECKSUMS} is truncated: it lacks {needed}")
    return checksums, hashlib.sha256(data).hexdigest()


def _what_happened(path: Path) -> str:
    """Truncated where a safetensors header says how long the file must be; else changed."""
    size = path.stat().st_size
    if path.suffix != ".safetensors":
        return "changed or truncated"
    try:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > size:
                return "truncated"
            header = json.loads(file.read(length))
        ends = [item["data_offsets"][1] for key, item in header.items() if key != "__metadata__"]
        if 8 + length + max(ends, default=0) > size:
            return f"truncated ({size} of {8 + length + max(ends, default=0)} bytes)"
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
        return "truncated or damaged"
    return "changed"
