"""What users get equals what torchvision's own pipeline gives: same picture, same weights, through the ``Predictor``.

Weights are random and seeded, for published ones cannot be had everywhere. A picture that needs no resizing shows that
everything else is the same; one that does shows what resizing in 8 bits changes.
``python -m tests.modelkit.test_parity`` prints the figures at full size (docs/benchmarks/2026-11-29-parity.md).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms._presets import ObjectDetection, SemanticSegmentation

from modelkit import Instances, Predictor, import_weights, load, rle
from modelkit.published import PUBLISHED
from modelkit.registry import find_model
from tests.modelkit.builders import picture

NAMES = sorted({entry.model for entry in PUBLISHED})
FIXED = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}


@dataclass(frozen=True)
class Differences:
    """Of our results to torchvision's, for one picture.

    Args:
        missed: share of its detections without one of ours of the same class within 2 % of the longer side of the image
            on every side and as near in its score, or of pixels that have another class.
        score: largest difference of the scores of pairs.
        box: largest difference of their sides, pixels.
        mask: largest share of a mask's pixels that differ.
    """

    missed: float
    score: float = 0.0
    box: float = 0.0
    mask: float = 0.0


def reference(name: str, sizes: dict[str, int]) -> nn.Module:
    """torchvision's own with random weights that make something happen everywhere."""
    torch.manual_seed(9)
    semantic = find_model(name).kind == "semantic"
    builders = torchvision.models.segmentation if semantic else torchvision.models.detection
    options: dict[str, Any] = {} if semantic or name in FIXED else dict(sizes)
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


def ours(name: str, theirs: nn.Module, sizes: dict[str, int], folder: Path) -> Predictor:
    """Through a checkpoint file and the importer, as a user would do it."""
    torch.save(theirs.state_dict(), folder / "theirs.pth")
    config = {} if name in FIXED else {"transform": sizes}
    import_weights(name, folder / "theirs.pth", folder / "ours", config=config)
    return load(folder / "ours")


def compare(name: str, theirs: nn.Module, predictor: Predictor, image: np.ndarray) -> Differences:
    """Our results beside those of torchvision's preset and model."""
    found = predictor([image])[0]
    planes = torch.from_numpy(image).permute(2, 0, 1)
    with torch.inference_mode():
        if find_model(name).kind == "semantic":
            preset = SemanticSegmentation(resize_size=predictor.model.transform.min_size)
            return _of_maps(found, theirs(preset(planes)[None])["out"][0].argmax(0))
        return _of_objects(found, theirs([ObjectDetection()(planes)])[0])


def _of_maps(found: Instances, expected: Tensor) -> Differences:
    rows, columns = (
        (2 * np.arange(side) + 1) * have // (2 * side) for side, have in zip(found.size_hw, expected.shape, strict=True)
    )
    wanted, given = expected.numpy()[rows[:, None], columns], np.zeros(found.size_hw, np.int64)
    for label, mask in zip(found.labels.tolist(), found.rles or (), strict=True):
        given[rle.decode(mask, found.size_hw).astype(bool)] = label
    assert len(np.unique(wanted)) > 1
    return Differences(float((given != wanted).mean()))


def _of_objects(found: Instances, expected: dict[str, Tensor]) -> Differences:
    boxes, labels = expected["boxes"], expected["labels"].numpy()
    assert len(labels) > 10
    apart = np.abs(boxes.numpy()[:, None] - found.boxes_xyxy[None]).max(-1)
    apart += max(found.size_hw) * np.abs(expected["scores"].numpy()[:, None] - found.scores[None])
    apart[labels[:, None] != found.labels[None]] = np.inf
    best = apart.argmin(1)
    paired = apart.min(1) <= 0.02 * max(found.size_hw)
    mine = best[paired]
    score = np.abs(expected["scores"].numpy()[paired] - found.scores[mine]).max()
    box = np.abs(boxes.numpy()[paired] - found.boxes_xyxy[mine]).max()
    mask = 0.0
    if found.rles is not None:
        theirs = expected["masks"][:, 0].numpy()[paired] > 0.5
        own = [rle.decode(found.rles[k], found.size_hw).astype(bool) for k in mine]
        mask = max(float((a ^ b).sum() / max(1, (a | b).sum())) for a, b in zip(theirs, own, strict=True))
    return Differences(float(1 - paired.mean()), float(score), float(box), mask)


@pytest.mark.parametrize("name", NAMES)
def test_a_predictor_gives_what_torchvisions_pipeline_gives(name: str, tmp_path: Path) -> None:
    semantic = find_model(name).kind == "semantic"
    sizes = {"min_size": 96, "max_size": 768} if semantic else {"min_size": 128, "max_size": 213}
    theirs = reference(name, sizes)
    predictor = ours(name, theirs, sizes, tmp_path)
    short = FIXED.get(name, sizes["min_size"])
    as_it_is = compare(name, theirs, predictor, picture(short, short if name in FIXED else short + 61, 4))
    assert as_it_is.missed == 0
    assert as_it_is.score <= 1e-3
    assert as_it_is.box <= 0.1
    assert as_it_is.mask <= 0.1
    print(name, as_it_is, compare(name, theirs, predictor, picture(231, 350, 4)))


def figures() -> None:
    """At the sizes that torchvision uses."""
    for name in NAMES:
        semantic = find_model(name).kind == "semantic"
        sizes = {"min_size": 520, "max_size": 4160} if semantic else {"min_size": 800, "max_size": 1333}
        theirs = reference(name, sizes)
        with tempfile.TemporaryDirectory() as folder:
            predictor = ours(name, theirs, sizes, Path(folder))
        short = FIXED.get(name, sizes["min_size"])
        for image in (picture(short, short if name in FIXED else short + 171, 4), picture(427, 640, 4)):
            print(name, image.shape[:2], compare(name, theirs, predictor, image), flush=True)


if __name__ == "__main__":
    figures()
