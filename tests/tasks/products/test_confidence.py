"""A semantic teacher that tells how sure it is of every pixel."""

from __future__ import annotations

import numpy as np
import pytest

import modelkit
from infra.errors import UsageError
from modelkit import rle
from tasks.products.segments.confidence import ConfidencePredictor
from tasks.products.segments.pixels import LEVELS, level_of

CONFIG = {"num_classes": 3, "backbone": {"widths": [4, 6]}, "transform": {"min_size": 32, "max_size": 64}}


def test_every_pixel_has_one_class_at_one_level_and_background_a_name() -> None:
    plain = modelkit.load("unet", weights="random:3", config=CONFIG)
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    [found] = ConfidencePredictor(plain)([image])
    assert found.rles is not None
    masks = np.stack([rle.decode(mask, (40, 56)) for mask in found.rles])
    assert (masks.sum(0) == 1).all()
    assert all(np.isclose(score, LEVELS[level_of(float(score))]) for score in found.scores)
    [segments] = plain([image])
    for label, mask in zip(segments.labels, segments.rles or [], strict=True):
        levels = masks[found.labels == label].any(0)
        assert (levels == rle.decode(mask, (40, 56))).all(), "the classes are those of the model itself"
    assert ConfidencePredictor(plain).weights.class_names()[0] == "background"
    assert ConfidencePredictor(plain).weights.digest == plain.weights.digest


def test_models_without_probabilities_of_pixels_are_refused() -> None:
    with pytest.raises(UsageError, match="no probabilities of pixels"):
        ConfidencePredictor(modelkit.load("digitscape_mask_rcnn"))
