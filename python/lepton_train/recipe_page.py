"""The page that a recipe writes: its tables over seeds, its picture, and where it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import lepton_kernels as lk
from lepton_train.files import write_whole
from lepton_train.report import text_table

# Where the name that a CPU gives itself says little.
_GENERATIONS = {(6, 143): "Sapphire Rapids", (6, 173): "Granite Rapids", (6, 207): "Emerald Rapids"}

Table = tuple[Sequence[str], Iterable[Sequence[str]]]


def over_seeds(values: Sequence[float], form: str = ".4f") -> str:
    """Mean of a figure, and its least and greatest value where there are several.

    Example:
        >>> over_seeds([0.5, 0.7]), over_seeds([0.5])
        ('0.6000 (0.5000 to 0.7000)', '0.5000')
    """
    mean = format(sum(values) / len(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ({format(min(values), form)} to {format(max(values), form)})"


def rows_over_seeds(
    runs: Sequence[Sequence[Mapping[str, Any]]], forms: Mapping[str, str]
) -> list[list[str]]:
    """Rows of a table from the rows of each seed, which must be of the same steps.

    Args:
        runs (sequence of sequences of mappings): for each seed its rows, with `step`.
        forms (mapping): key of a figure to its format.

    Returns:
        list of lists of str: the step, then each figure over the seeds.
    """
    return [
        [str(rows[0]["step"]), *(over_seeds([r[k] for r in rows], f) for k, f in forms.items())]
        for rows in zip(*runs, strict=True)
    ]


def lists_over_seeds(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows for `plots.before_and_after`, each figure a list with a value for each seed."""
    return [
        {
            "step": rows[0]["step"],
            **{key: [row[key] for row in rows] for key in ("score", "size_mb", "latency_ms")},
        }
        for rows in zip(*runs, strict=True)
    ]


def version_of(file: str | os.PathLike[str]) -> str:
    """Version of the installed package, and the commit of the clone that a recipe lies in.

    A recipe outside a clone has no commit: then the version stands alone and says so.
    """
    folder = Path(file).resolve().parent
    try:
        root = Path(_git(folder, "rev-parse", "--show-toplevel"))
        if 'name = "lepton-kernels"' in (root / "pyproject.toml").read_text(encoding="utf-8"):
            changed = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
            commit = _git(root, "rev-parse", "--short=12", "HEAD")
            return f"version {lk.__version__}, commit {commit}{' with changes' * changed}"
    except (OSError, subprocess.SubprocessError):
        pass
    return f"version {lk.__version__}, commit not recorded (run outside a clone)"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip
    return done.stdout.strip()


def machine_line(file: str | os.PathLike[str]) -> str:
    """Machine, threads and versions in one sentence."""
    info = lk.info()
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "amx_int8": "AMX"}
    has = ", ".join(name for feature, name in known.items() if feature in info["cpu_features"])
    kind = _GENERATIONS.get(_family_and_model())
    return (
        f"{os.cpu_count()} cores of {info['cpu']} ({f'{kind}: ' * bool(kind)}{has}), kernels for "
        f"{info['isa']}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, Python "
        f"{platform.python_version()}, lepton-kernels {version_of(file)}."
    )


def _load() -> str:
    """How busy the machine is, where the system tells."""
    try:
        load, count = os.getloadavg()[1], os.cpu_count() or 1
    except OSError:
        return ""
    busy = ": times are those of a busy machine" if load > count + 0.5 else ""
    return f"Load of the last 5 minutes {load:.1f} on {count} cores{busy}. "


def _family_and_model() -> tuple[int, int]:
    """Of the first CPU by Linux; zeros elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        pairs = [line.split(":", 1) for line in lines[:12] if ":" in line]
        found = {key.strip(): value.strip() for key, value in pairs}
        return int(found["cpu family"]), int(found["model"])
    except (OSError, KeyError, ValueError):
        return 0, 0


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown.

    Example:
        >>> print(markdown_table(("a", "b"), [("1", "2")]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    lines = [heads, ["---"] * len(heads), *rows]
    text = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    text[1] = "|" + "---|" * len(heads)
    return "\n".join(text)


def write_page(
    path: str | os.PathLike[str],
    recipe: str | os.PathLike[str],
    *,
    title: str,
    line: str,
    tables: Iterable[Table],
    notes: Iterable[str] = (),
    picture: str | None = None,
) -> Path:
    """Write a page of what a recipe measured.

    Args:
        path (str or path): the Markdown file.
        recipe (str or path): the recipe's own file.
        title (str): heading.
        line (str): command that ran it.
        tables (iterable of (heads, rows)): what was measured.
        notes (iterable of str): paragraphs below. Default: ().
        picture (str, optional): file name of a picture beside the page. Default: None.

    Returns:
        Path: the file.
    """
    parts = [f"# {title}", f"```bash\n{line}\n```"]
    parts += [markdown_table(heads, rows) for heads, rows in tables]
    parts += list(notes)
    parts.append(
        f"Measured on: {machine_line(recipe)} {_load()}This page was written by the recipe."
    )
    if picture is not None:
        parts.append(f"![{title}]({picture})")
    text = "\n\n".join(parts) + "\n"

    def write(file: Path) -> None:
        file.write_text(text, encoding="utf-8")

    return write_whole(path, write)


def show_table(
    page: Path | None,
    script: str | os.PathLike[str],
    *,
    title: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Iterable[str],
) -> None:
    """Print the one table of a benchmark, and write its page if asked to.

    Args:
        page (Path, optional): the Markdown file, or None.
        script (str or path): the benchmark's own file, in `benchmarks/`; its page in `docs/` has
            the same name.
        title, heads, rows, notes: as in `write_page`.
    """
    print(text_table(heads, rows))
    if page is None:
        return
    name = Path(script).stem
    line = f"python benchmarks/{name}.py --page docs/{name}.md"
    write_page(page, script, title=title, line=line, tables=[(heads, rows)], notes=notes)
    print(f"wrote {page}")
