"""Training and compression of standard PyTorch models on top of `lepton_kernels`."""

from lepton_train import distributed

__all__ = ["distributed"]
