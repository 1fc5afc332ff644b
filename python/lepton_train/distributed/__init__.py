"""Data-parallel training of standard PyTorch models."""
