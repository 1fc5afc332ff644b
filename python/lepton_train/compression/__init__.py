"""Compression by a recipe: its steps, their order, the report."""

from lepton_train.compression.compress import compress

__all__ = ["compress"]
