"""Teachers of the loop look at large pictures in tiles, too: qualities and levels of confidence come along."""

from __future__ import annotations

import numpy as np

from modelkit import load
from modelkit.tiling import TiledPredictor, Tiling
from tasks.products.segments.confidence import ConfidencePredictor
from tasks.products.segments.pixels import LEVELS
from tasks.products.segments.quality import QualityPredictor
from tests.modelkit.tiling.test_predictor import SHIPPED, by_colour, composed


def test_objects_of_tiles_have_the_qualities_that_were_measured_there() -> None:
    image = composed(0)[0][:240, :240]
    plain, tiled = load(SHIPPED), load(SHIPPED, tile=160, overlap=80)
    teacher = tiled.around(lambda inner: QualityPredictor(inner))
    assert isinstance(teacher, TiledPredictor) and teacher.rows_digest == plain.rows_digest
    [found], [without] = teacher([image]), tiled([image])
    assert found.rles == without.rles and np.array_equal(found.scores, without.scores)
    quality = (found.qualities or {})["q_stability"]
    assert quality.shape == found.scores.shape and (quality >= 0).all() and (quality <= 1).all()
    assert quality[found.scores > 0.9].mean() > 0.7


def test_regions_of_tiles_are_divided_by_class_and_level_and_cover_the_picture_once() -> None:
    classes = np.kron(np.random.default_rng(0).integers(0, 3, (12, 9)), np.ones((16, 16), int))
    image = (np.eye(3, dtype=np.uint8)[classes] * 255).astype(np.uint8)
    teacher = TiledPredictor(by_colour(), Tiling(64, 16)).around(ConfidencePredictor)
    [found] = teacher([image])
    assert (found.masks().sum(0) == 1).all()
    assert {round(float(score), 4) for score in found.scores} <= set(LEVELS)
    answer = np.einsum("n,nhw->hw", found.labels, found.masks())
    assert (answer == classes).mean() > 0.99
