"""Mean IoU of a predictor on digitscape: ten digits, five kinds of background, or the digits against all else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from modelkit.carriers import Instances
from modelkit.digitscape import CLASS_NAMES, FIRST_STUFF_ID, STUFF_NAMES, Digitscape, Scene
from modelkit.evaluation import Predict
from modelkit.metrics import SemanticQuality, SemanticScores
from modelkit.rle import decode
from modelkit.weights import ClassInfo

Labels = Literal["digits", "all"]
"""Which classes there are: "digits" (0 is background, 1 .. 10 the digits) or "all" (the kinds of background, too)."""


def classes(labels: Labels) -> tuple[ClassInfo, ...]:
    """The meaning of the class ids, background left out."""
    digits = tuple(ClassInfo(k + 1, name, is_thing=False) for k, name in enumerate(CLASS_NAMES))
    stuff = tuple(ClassInfo(FIRST_STUFF_ID + k, name, is_thing=False) for k, name in enumerate(STUFF_NAMES))
    return digits if labels == "digits" else digits + stuff


def num_classes(labels: Labels) -> int:
    """Class ids are 0 .. this - 1; with "all" nothing is labelled 0."""
    return 1 + len(classes(labels))


def truth(scene: Scene, labels: Labels) -> np.ndarray:
    """(H, W) uint8 class ids of a scene."""
    return np.where((scene.instance_map > 0) | (labels == "all"), scene.semantic_map, 0).astype(np.uint8)


def label_map(instances: Instances) -> np.ndarray:
    """(H, W) int64 class ids of segments that do not overlap; 0 where there is none."""
    labels = np.zeros(instances.size_hw, np.int64)
    for label, rle in zip(instances.labels, instances.rles or (), strict=True):
        labels[decode(rle, instances.size_hw).astype(bool)] = label
    return labels


def evaluate_semantic(
    predict: Predict,
    source: Digitscape,
    num_scenes: int,
    *,
    labels: Labels,
    first: int = 0,
    batch_size: int = 8,
    border_px: float | None = None,
) -> SemanticScores:
    """Mean IoU over scenes ``first .. first + num_scenes``, judged by the segments that a user gets.

    Args:
        predict: what to judge.
        source: split, size, seed and style of the scenes.
        num_scenes: at least 1.
        labels: which classes the model knows.
        first: index of the first scene.
        batch_size: images per call of ``predict``.
        border_px: judge only pixels this near to the outlines of the truth; None judges all.
    """
    if num_scenes < 1:
        raise ValueError(f"num_scenes must be at least 1, got {num_scenes}")
    quality = SemanticQuality(num_classes(labels), border_px=border_px)
    for start in range(first, first + num_scenes, batch_size):
        scenes = [source.scene(k) for k in range(start, min(start + batch_size, first + num_scenes))]
        found: Sequence[Instances] = predict([scene.image_rgb for scene in scenes])
        for scene, instances in zip(scenes, found, strict=True):
            quality.add(truth(scene, labels), label_map(instances))
    return quality.scores()
