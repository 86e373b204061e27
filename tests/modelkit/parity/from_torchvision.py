"""torchvision's presets and models, with random weights, beside what was imported from their checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.transforms._presets import ObjectDetection, SemanticSegmentation

from modelkit import Predictor, import_weights, load
from modelkit.published import PUBLISHED
from modelkit.registry import find_model
from tests.modelkit.parity.differences import Differences, Objects, of_maps, of_objects

NAMES = sorted({entry.model for entry in PUBLISHED})
SQUARES = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}


def is_semantic(name: str) -> bool:
    """Whether a model gives class maps, by the shorter side of 520 pixels; the others are detectors."""
    return find_model(name).kind == "semantic"


def reference(name: str, **options: Any) -> nn.Module:
    """torchvision's own with random weights that make something happen everywhere."""
    torch.manual_seed(9)
    builders = torchvision.models.segmentation if is_semantic(name) else torchvision.models.detection
    model = getattr(builders, name)(weights=None, weights_backbone=None, num_classes=5, **options)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=1.4 / module.weight[0].numel() ** 0.5)
            if module.weight[0].numel() > 9:  # what all inputs have in common says nothing of the picture
                module.weight.data -= module.weight.data.flatten(1).mean(1).view(-1, *[1] * (module.weight.dim() - 1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def imported(name: str, theirs: nn.Module, folder: Path, **config: Any) -> Predictor:
    """Through a checkpoint file and the importer, as a user would do it."""
    torch.save(theirs.state_dict(), folder / "theirs.pth")
    import_weights(name, folder / "theirs.pth", folder / "ours", config=config)
    return load(folder / "ours")


def compare(name: str, theirs: nn.Module, predictor: Predictor, image: np.ndarray) -> Differences:
    """Our results for a picture (H, W, 3) uint8 beside those of torchvision's preset and model."""
    found = predictor([image])[0]
    planes = torch.from_numpy(image).permute(2, 0, 1)
    with torch.inference_mode():
        if is_semantic(name):
            preset = SemanticSegmentation(resize_size=predictor.model.transform.min_size)
            return of_maps(found, theirs(preset(planes)[None])["out"][0].argmax(0).numpy())
        given = theirs([ObjectDetection()(planes)])[0]
    masks = given["masks"][:, 0].numpy() > 0.5 if "masks" in given else None
    boxes = given["boxes"].numpy()
    return of_objects(found, Objects(given["labels"].numpy(), given["scores"].numpy(), boxes, masks, _pasted))


def _pasted(boxes: np.ndarray) -> np.ndarray:
    """Whole pixels that torchvision stretches masks of 28 x 28 over, for boxes (n, 4): one cell more on every side."""
    margin = (boxes[:, 2:] - boxes[:, :2]) / 28
    return np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], axis=1).astype(np.int64)
