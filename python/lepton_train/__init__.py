"""Training and compression of standard PyTorch models on top of `lepton_kernels`.

import lepton_train as lt
report = lt.quantize_(model, "dynamic", exclude="lm_head")
print(report)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lepton_kernels import __version__
from lepton_train import data, distributed, federated, metrics
from lepton_train.compression import compress
from lepton_train.distill import Distiller
from lepton_train.explain import Explanation, explain
from lepton_train.fuse import FusionReport, fuse_
from lepton_train.low_precision import LowPrecisionLinear, lower_
from lepton_train.pack import PackReport, pack_
from lepton_train.predict import SparsityPrediction, predict_sparsity
from lepton_train.prune import PruningReport, PruningSchedule, make_permanent_, prune_
from lepton_train.quantize import convert_, quantize_
from lepton_train.recover import RecoveryReport, recover_
from lepton_train.report import QuantizationReport
from lepton_train.sensitivity import sensitivity
from lepton_train.training import EarlyStopping, Evaluation, FitResult, evaluate, fit

if TYPE_CHECKING:
    from lepton_train import bundle

# Parts that need more than torch, imported at first use.
_LATER = frozenset(("bundle",))


def __getattr__(name: str) -> Any:
    """Import `lt.bundle` when it is first asked for."""
    if name in _LATER:
        return importlib.import_module(f"lepton_train.{name}")
    raise AttributeError(f"module 'lepton_train' has no attribute {name!r}")


__all__ = [
    "Distiller",
    "EarlyStopping",
    "Evaluation",
    "Explanation",
    "FitResult",
    "FusionReport",
    "LowPrecisionLinear",
    "PackReport",
    "PruningReport",
    "PruningSchedule",
    "QuantizationReport",
    "RecoveryReport",
    "SparsityPrediction",
    "__version__",
    "bundle",
    "compress",
    "convert_",
    "data",
    "distributed",
    "evaluate",
    "explain",
    "federated",
    "fit",
    "fuse_",
    "lower_",
    "make_permanent_",
    "metrics",
    "pack_",
    "predict_sparsity",
    "prune_",
    "quantize_",
    "recover_",
    "sensitivity",
]
