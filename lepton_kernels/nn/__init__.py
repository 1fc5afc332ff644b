"""Modules over the operators, drop-in for those of `torch.nn`."""

from lepton_kernels.nn.int8_linear import Int8Linear, Int8LinearQAT
from lepton_kernels.nn.multihead_attention import MultiheadAttention

__all__ = ["Int8Linear", "Int8LinearQAT", "MultiheadAttention"]
