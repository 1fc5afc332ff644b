"""`lepton serve`: a bundle behind HTTP, with limits and a watch on its inputs.

from lepton_train.serve import Predictor, create_app
app = create_app(Predictor("model"))        # for any ASGI server
"""

from lepton_train.serve.app import Limits, create_app
from lepton_train.serve.drift import Drift, population_stability_index, statistics
from lepton_train.serve.predictor import InputError, Predictor
from lepton_train.serve.run import serve

__all__ = [
    "Drift",
    "InputError",
    "Limits",
    "Predictor",
    "create_app",
    "population_stability_index",
    "serve",
    "statistics",
]
