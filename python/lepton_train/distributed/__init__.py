"""Data-parallel training of standard PyTorch models."""

from lepton_train.distributed._torchrun import join_torchrun
from lepton_train.distributed.data_parallel import BucketedDataParallel
from lepton_train.distributed.fsdp import Int8ReduceScatter
from lepton_train.distributed.hooks import bf16_hook, int8_hook
from lepton_train.distributed.local_sgd import LocalSGD
from lepton_train.distributed.sharded import ShardedOptimizer
from lepton_train.distributed.stale import StaleGradients

__all__ = [
    "BucketedDataParallel",
    "Int8ReduceScatter",
    "LocalSGD",
    "ShardedOptimizer",
    "StaleGradients",
    "bf16_hook",
    "int8_hook",
    "join_torchrun",
]
