"""Everything that ``modelkit`` offers, imported at once; see the package for why not at its own import."""

from modelkit.base import VisionModel
from modelkit.card import model_card
from modelkit.carriers import Instances
from modelkit.carriers.classes import ClassInfo
from modelkit.catalogue import ModelInfo, describe, is_video_model, list_models
from modelkit.compile.execution import ExecutionChoice
from modelkit.errors import (
    ConfigError,
    DuplicateNameError,
    ModelkitError,
    StateError,
    TargetError,
    UnknownNameError,
    WeightsError,
    WeightsUnavailableError,
)
from modelkit.exporting.program import export_model
from modelkit.functions import FunctionPredictor
from modelkit.importing import import_weights
from modelkit.loading import check_options, load
from modelkit.predictor import Predictor, Prepared
from modelkit.records import Tolerates, Weights
from modelkit.registry import create_model, import_families, register, register_model
from modelkit.video import VideoModel, VideoState
from modelkit.weights import load_weights, save_weights

import_families()

__all__ = [
    "ClassInfo",
    "ConfigError",
    "DuplicateNameError",
    "ExecutionChoice",
    "FunctionPredictor",
    "Instances",
    "ModelInfo",
    "ModelkitError",
    "Predictor",
    "Prepared",
    "StateError",
    "TargetError",
    "Tolerates",
    "UnknownNameError",
    "VideoModel",
    "VideoState",
    "VisionModel",
    "Weights",
    "WeightsError",
    "WeightsUnavailableError",
    "check_options",
    "create_model",
    "describe",
    "export_model",
    "import_weights",
    "is_video_model",
    "list_models",
    "load",
    "load_weights",
    "model_card",
    "register",
    "register_model",
    "save_weights",
]
