"""Adapters for other libraries; each imports its library only when called."""

from lepton_kernels.integrations import transformers

__all__ = ["transformers"]
