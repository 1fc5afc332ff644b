"""What a row says about where it was measured."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path

import lepton_kernels as lk

_CPU0 = Path("/sys/devices/system/cpu/cpu0/cache")
_DEFAULT_BYTES = {2: 1 << 20, 3: 32 << 20}


@functools.cache
def cache_bytes(level: int) -> int:
    """Size of the L2 or L3 cache that the first core sees; a common size where Linux hides it."""
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    for index in sorted(_CPU0.glob("index*")):
        try:
            if int((index / "level").read_text()) != level:
                continue
            found = re.fullmatch(r"(\d+)([KMG]?)", (index / "size").read_text().strip())
        except (OSError, ValueError):
            continue
        if found:
            return int(found[1]) * units[found[2]]
    return _DEFAULT_BYTES[level]


@functools.cache
def description() -> str:
    """CPU model, cores and caches in one line."""
    l2, l3 = cache_bytes(2) >> 10, cache_bytes(3) >> 20
    return f"{lk.info()['cpu']}, {os.cpu_count()} CPUs, L2 {l2} KiB, L3 {l3} MiB"


@functools.cache
def commit() -> str:
    """Commit of what is measured.

    An installed package does not know its own: LEPTON_COMMIT where that is set, else the commit of
    the lepton-kernels clone that the command runs in, else the package's version.
    """
    stated = os.environ.get("LEPTON_COMMIT", "")
    if stated:
        if not re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?", stated):
            raise ValueError(
                f"bench: LEPTON_COMMIT must be a commit's hexadecimal name, got {stated!r}"
            )
        return stated
    try:
        root = Path(_git("rev-parse", "--show-toplevel"))
        if 'name = "lepton-kernels"' in (root / "pyproject.toml").read_text(encoding="utf-8"):
            dirty = "-dirty" if _git("status", "--porcelain", "--untracked-files=no") else ""
            return _git("rev-parse", "--short=12", "HEAD") + dirty
    except (OSError, subprocess.SubprocessError):
        pass
    return f"v{lk.__version__}"


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()
