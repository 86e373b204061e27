"""Vision models as tensors see them: create, train, load, predict. Knows nothing of clusters, flows or storage.

import modelkit
predictor = modelkit.load("digitscape_mask_rcnn")
results = predictor([image])  # (H, W, 3) uint8 RGB in; boxes, scores, labels, run lengths in source pixels out
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelkit._public import *  # noqa: F403

__all__ = [  # noqa: F405
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


_WITHOUT_TORCH = {
    "modelkit.card": ("model_card",),
    "modelkit.catalogue": ("ModelInfo", "describe", "is_video_model", "list_models"),
    "modelkit.functions": ("FunctionPredictor",),
    "modelkit.carriers": ("Instances",),
    "modelkit.records": ("Tolerates", "Weights"),
    "modelkit.carriers.classes": ("ClassInfo",),
    "modelkit.errors": (
        "ConfigError",
        "DuplicateNameError",
        "ModelkitError",
        "StateError",
        "TargetError",
        "UnknownNameError",
        "WeightsError",
        "WeightsUnavailableError",
    ),
}


def __getattr__(name: str) -> Any:
    """Public names come with their first use: torch and torchvision take seconds to import, and whoever only reads
    run lengths or carries results (a query, an export, a driver) needs neither."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((module for module, names in _WITHOUT_TORCH.items() if name in names), "modelkit._public")
    value = globals()[name] = getattr(importlib.import_module(module), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
