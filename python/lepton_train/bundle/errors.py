"""The error of everything that is wrong with a bundle."""

from __future__ import annotations


class BundleError(ValueError):
    """A bundle that is not opened, and why; nothing of it was run."""
