"""Benchmarks of `lepton bench FAMILY --device cuda`, on a GPU beside torch's and other kernels.

Each family has a list `IMPLEMENTATIONS` (`implementation.Implementation`); to take part, append to
it. `--dry-run` builds and checks every implementation on tiny cases on the CPU, and times nothing.
"""
