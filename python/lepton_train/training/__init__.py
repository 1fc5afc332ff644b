"""The training loop and its parts, and evaluation."""

from lepton_train.training.early_stopping import EarlyStopping
from lepton_train.training.evaluate import Evaluation, evaluate
from lepton_train.training.loop import fit
from lepton_train.training.result import FitResult

__all__ = ["EarlyStopping", "Evaluation", "FitResult", "evaluate", "fit"]
