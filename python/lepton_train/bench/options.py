"""Options of `lepton bench`, the same for every family."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

DTYPES = ("fp32", "bf16")


@dataclass(frozen=True)
class Options:
    """What to measure; see `parse` for the meaning of each."""

    isa: str | None = None
    threads: int | None = None
    dtypes: tuple[str, ...] = DTYPES
    pattern: re.Pattern[str] = re.compile("")
    quick: bool = False
    plot: str | None = None
    shapes: str | None = None
    only: tuple[str, ...] = ()
    compiled: bool = False
    dry_run: bool = False
    cold_mib: float | None = None
    budget_s: float = 2.0

    def chosen(self, names: Collection[str], compiled: Collection[str] = ()) -> list[str]:
        """Implementations to measure: those of `only`, or all.

        Args:
            names (collection of str): the family's, in the order of the result.
            compiled (collection of str): of them, those that run only when named or with
                `compiled`. Default: none.

        Raises:
            ValueError: `only` names one that does not exist.
        """
        unknown = set(self.only) - set(names)
        if unknown:
            raise ValueError(
                f"bench: --only {', '.join(sorted(unknown))}: unknown; there are {', '.join(names)}"
            )
        if self.only:
            return [name for name in names if name in self.only]
        return [name for name in names if self.compiled or name not in compiled]


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be positive, got {text}")
        return value

    convert.__name__ = "number"  # argparse puts it into "invalid number value"
    return convert


def parser() -> argparse.ArgumentParser:
    """The parser of a family's options, for `parse` and for help texts."""
    parser = argparse.ArgumentParser(
        prog="lepton bench FAMILY",
        description="Time a kernel family beside its peers, in one process, on cold weights.",
        epilog="example: lepton bench int8_linear --quick --dtype fp32 --json rows.json",
    )
    add = parser.add_argument
    add("--isa", help="limit lepton's kernels to generic, avx2, vnni or amx (not the peers)")
    add("--threads", type=_positive(int), help="threads of every implementation")
    add("--dtype", choices=[*DTYPES, "all"], default="all", help="of input and output")
    add("--filter", type=_pattern, default=_pattern(""), help="regular expression for case names")
    add("--only", default="", help="implementations, separated by commas (default: all)")
    add("--quick", action="store_true", help="few shapes, little time each")
    add("--compiled", action="store_true", help="torch.compile'd peers, too (minutes)")
    add("--dry-run", action="store_true", help="with --device cuda: tiny cases checked on the CPU")
    add("--shapes", help="JSON file of shapes in place of the packaged one")
    add("--cold-mib", type=_positive(float), help="size of the rotated weights (4 times the L2s)")
    add("--budget", type=_positive(float), help="seconds of timing per case (2; 0.3 with --quick)")
    add("--plot", metavar="DIR", help="write percent of ceiling and ratios as pictures")
    return parser


def parse(arguments: list[str]) -> Options:
    """Read options; argparse prints what is wrong and exits with status 2."""
    given = parser().parse_args(arguments)
    return Options(
        isa=given.isa,
        threads=given.threads,
        dtypes=DTYPES if given.dtype == "all" else (given.dtype,),
        pattern=given.filter,
        quick=given.quick,
        plot=given.plot,
        shapes=given.shapes,
        only=tuple(name for name in given.only.split(",") if name),
        compiled=given.compiled,
        dry_run=given.dry_run,
        cold_mib=given.cold_mib,
        budget_s=given.budget or (0.3 if given.quick else 2.0),
    )
