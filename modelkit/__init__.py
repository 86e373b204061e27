"""Vision models as tensors see them: create, train, load, predict. Knows nothing of clusters, flows or storage.

import modelkit
predictor = modelkit.load("digitscape_mask_rcnn")
results = predictor([image])  # (H, W, 3) uint8 RGB in; boxes, scores, labels, run lengths in source pixels out
"""

from modelkit.base import VisionModel
from modelkit.errors import (
    ConfigError,
    DuplicateNameError,
    ModelkitError,
    TargetError,
    UnknownNameError,
    WeightsError,
    WeightsUnavailableError,
)
from modelkit.execution import ExecutionChoice
from modelkit.importing import import_weights
from modelkit.loading import describe, load
from modelkit.predictor import Predictor, Prepared
from modelkit.registry import ModelInfo, create_model, list_models, register, register_model
from modelkit.registry import import_families as _import_families
from modelkit.types import Instances
from modelkit.weights import ClassInfo, Tolerates, Weights, load_weights, save_weights

_import_families()

__all__ = [
    "ClassInfo",
    "ConfigError",
    "DuplicateNameError",
    "ExecutionChoice",
    "Instances",
    "ModelInfo",
    "ModelkitError",
    "Predictor",
    "Prepared",
    "TargetError",
    "Tolerates",
    "UnknownNameError",
    "VisionModel",
    "Weights",
    "WeightsError",
    "WeightsUnavailableError",
    "create_model",
    "describe",
    "import_weights",
    "list_models",
    "load",
    "load_weights",
    "register",
    "register_model",
    "save_weights",
]
