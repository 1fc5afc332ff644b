"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from lepton_train.packages import require


class Progress:
    """Counts steps on standard error; use it in a `with` block.

    Args:
        total (int): number of steps.
        purpose (str): what the work is, for the message where rich is missing.

    Raises:
        MissingPackageError: standard error is a terminal and rich is not installed.
    """

    def __init__(self, total: int, purpose: str = "the progress bar") -> None:
        self.total = total
        self.done = 0
        self._title = ""
        self._bar: Any = None
        if sys.stderr.isatty():
            console = require("rich.console", purpose, "rich").Console(stderr=True)
            self._bar = require("rich.progress", purpose, "rich").Progress(
                console=console, transient=True
            )
            self._task = self._bar.add_task("", total=total)

    def step(self, title: str, steps: int = 1) -> None:
        """Begin the step called `title`; a plain line is written once per title."""
        if self._bar is not None:
            self._bar.update(self._task, advance=steps if self.done else 0, description=title)
        elif title != self._title:
            print(f"[{100 * self.done // max(self.total, 1):3d}%] {title}", file=sys.stderr)
        self._title = title
        self.done += steps

    def __enter__(self) -> Progress:
        """Show the bar."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
