"""Bundles: a trained model as a folder that another machine checks before it runs it.

import lepton_train as lt
digest = lt.bundle.save(model, "model", metadata={"name": "demo", "licence": "MIT"})
print(lt.bundle.verify("model", digest=digest))
model = lt.bundle.load("model")
"""

from lepton_train.bundle.architecture import register_builder
from lepton_train.bundle.errors import BundleError
from lepton_train.bundle.huggingface_export import export_huggingface
from lepton_train.bundle.manifest import SCHEMA_VERSION, Feature, Manifest, Metadata, Metric
from lepton_train.bundle.onnx_export import OnnxReport, export_onnx
from lepton_train.bundle.store import (
    Verification,
    load,
    read_manifest,
    restore,
    save,
    verify,
    versions,
)

__all__ = [
    "SCHEMA_VERSION",
    "BundleError",
    "Feature",
    "Manifest",
    "Metadata",
    "Metric",
    "OnnxReport",
    "Verification",
    "export_huggingface",
    "export_onnx",
    "load",
    "read_manifest",
    "register_builder",
    "restore",
    "save",
    "verify",
    "versions",
]
