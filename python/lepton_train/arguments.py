"""Checks of plain arguments, shared by the functions of this package."""

from __future__ import annotations

import numbers


def check_number(op: str, argument: str, value: object) -> None:
    """TypeError unless `value` is a real number.

    Example:
        >>> check_number("prune_", "sparsity", "half")
        Traceback (most recent call last):
            ...
        TypeError: prune_: sparsity must be a number, got str
    """
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: {argument} must be a number, got {type(value).__name__}")


def check_integer(op: str, argument: str, value: object) -> None:
    """TypeError unless `value` is an integer."""
    if not isinstance(value, numbers.Integral):
        raise TypeError(f"{op}: {argument} must be an int, got {type(value).__name__}")
