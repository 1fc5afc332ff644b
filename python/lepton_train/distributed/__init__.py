"""Data-parallel training of standard PyTorch models."""

from lepton_train.distributed.data_parallel import BucketedDataParallel
from lepton_train.distributed.hooks import bf16_hook, int8_hook
from lepton_train.distributed.local_sgd import LocalSGD

__all__ = ["BucketedDataParallel", "LocalSGD", "bf16_hook", "int8_hook"]
