"""Types of arguments on the command line."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """A whole number of at least 1; else argparse prints what is wrong.

    Example:
        >>> count("32")
        32
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return value
