"""A finished folder takes the place of an older one at once, and the older one is kept."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lepton_train.bundle.errors import BundleError
from lepton_train.bundle.folder import MANIFEST

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A folder beside `target` to fill; it is gone at the end unless it was published."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def check_target(target: Path) -> int:
    """Version of the bundle at `target`, 0 where there is nothing.

    Raises:
        BundleError: something else lies there, which is not overwritten.
    """
    if not os.path.lexists(target):
        return 0
    if target.is_symlink() or not target.is_dir():
        raise BundleError(
            f"bundle.save: {str(target)!r} exists and is no folder; it is left as it is"
        )
    if not any(target.iterdir()):
        return 0
    try:
        version = json.loads((target / MANIFEST).read_bytes())["version"]
        if isinstance(version, int) and version >= 1:
            return version
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise BundleError(f"bundle.save: {str(target)!r} exists and is no bundle; it is left as it is")


def backups(target: Path) -> dict[int, Path]:
    """Older versions kept beside a bundle: version -> folder `NAME.vVERSION`, oldest first."""
    form = re.compile(re.escape(target.name) + r"\.v(\d+)")
    found = {}
    if target.parent.is_dir():
        for entry in target.parent.iterdir():
            match = form.fullmatch(entry.name)
            if match and entry.is_dir() and not entry.is_symlink():
                found[int(match[1])] = entry
    return dict(sorted(found.items()))


def publish(staged: Path, target: Path, old_version: int, keep: int) -> None:
    """Put a staged folder in the place of `target`.

    Args:
        staged (Path): complete; on the same file system.
        target (Path): absent, an empty folder, or a bundle.
        old_version (int): version of that bundle; 0 where there is none.
        keep (int): older versions to keep.
    """
    _sync(staged)
    staged.chmod(0o777 & ~_umask())
    if old_version == 0:
        if target.is_dir():
            target.rmdir()
        staged.rename(target)
        _sync_folder(target.parent)
        return
    backup = target.with_name(f"{target.name}.v{old_version}")
    if backup.exists():
        shutil.rmtree(backup)
    if _exchange(staged, target):
        # `target` is never absent: the old bundle now bears the temporary name.
        staged.rename(backup)
    else:
        target.rename(backup)
        try:
            staged.rename(target)
        except OSError:
            backup.rename(target)
            raise
    _sync_folder(target.parent)
    kept = backups(target)
    for version in list(kept)[: max(len(kept) - keep, 0)]:
        shutil.rmtree(kept[version])


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, where the system can (Linux 3.15, most file systems)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    status = libc.renameat2(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE
    )
    if status == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _sync(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            _sync_folder(Path(folder) / name)
        _sync_folder(Path(folder))


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
