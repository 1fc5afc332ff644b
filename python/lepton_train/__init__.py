"""Training and compression of standard PyTorch models on top of `lepton_kernels`."""
