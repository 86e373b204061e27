"""Objects whose points a model doubts: planted errors come before what the model itself is unsure of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from infra.errors import UsageError
from modelkit import ClassInfo, Predictor
from modelkit.landmarks.support import near
from modelkit.weights import random_weights
from tasks.evaluation.evaluate import evaluate_predictor
from tasks.evaluation.suspects import suspects_of
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.labels.points import point_set
from tasks.product import Suspect
from tests.modelkit.builders import small_landmarker

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
POINTS = point_set(["tip", "heel", "middle"])
GREY, SIDE, PICTURES = 128, 64, 60
BOX = (8.0, 8.0, 56.0, 56.0)


class Colours(nn.Module):
    """A network that needs no training: how much each pixel has the colour of each point."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        signs = torch.tensor([[1.0 if c else -1.0 for c in colour] for colour in COLOURS])
        return {"heatmaps": (2 * batch[:, None] * signs[None, :, :, None, None]).clamp(min=0).amin(2)}


def predictor() -> Predictor:
    shape = {"padding": "letterbox", "fixed_hw": [64, 64], "mean": [GREY / 255] * 3, "std": [1.0] * 3}
    model, weights = random_weights("heatmap_landmarker", 0, small_landmarker(num_keypoints=3, transform=shape))
    model.network = Colours()
    return Predictor(model, replace(weights, keypoints=POINTS, classes=(ClassInfo(1, "thing"),)))


def scene(folder: Path, k: int, is_unsure: bool) -> tuple[str, np.ndarray]:
    """A grey picture with a dot of its colour at each of three points; where it is unsure, the first dot is pale, and
    elsewhere is another dot of its colour which is a little less pale.
    """
    rng = np.random.default_rng(k)
    middles = np.array([[18, 18], [46, 18], [32, 46]]) + rng.integers(-4, 5, (3, 2))
    pixels = np.full((SIDE, SIDE, 3), float(GREY))
    pale = rng.uniform(0.5, 0.65) if is_unsure else rng.uniform(0.85, 1.0)
    dots = [(middles[0], 0, pale - 0.05 * is_unsure), (middles[1], 1, 1.0), (middles[2], 2, 1.0)]
    dots += [(np.array([16, 44]), 0, pale)] * is_unsure
    for (x, y), point, strength in dots:
        pixels[y - 2 : y + 3, x - 2 : x + 3] += (np.array(COLOURS[point]) - GREY) * strength
    path = folder / f"{k:03d}.png"
    Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8)).save(path)
    return str(path), np.concatenate([middles + 0.5, np.full((3, 1), 2.0)], 1)


UNSURE, SWAPPED, MOVED = range(0, 12), 20, (30, 31)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelSet:
    """Sixty pictures of one object; in three of them points are wrong, and in twelve others the model is."""
    items = []
    for k in range(PICTURES):
        uri, points = scene(tmp_path_factory.getbasetemp(), k, k in UNSURE)
        if k == SWAPPED:
            points[[0, 1]] = points[[1, 0]]
        if k in MOVED:
            points[2, :2] = (14.5, 34.5)
        thing = LabelledObject(1, None, BOX, origin_id=f"o{k}", keypoint_xyv=tuple((x, y, v) for x, y, v in points))
        items.append(LabelledItem(uri, (SIDE, SIDE), (thing,)))
    return make_label_set(items, [ClassInfo(1, "thing")], origin_format="test", points=POINTS)


@pytest.fixture(scope="module")
def found(labels: LabelSet) -> tuple[Suspect, ...]:
    judgement = evaluate_predictor(predictor(), labels)
    off = judgement.figures["box_diagonal"]["by_class"]
    assert off["heel"] > off["tip"], "the model is wrong about the tip where it is unsure"
    return suspects_of(judgement).labelled


def test_planted_errors_come_first_and_right_labels_that_the_model_half_sees_are_no_suspects(
    found: tuple[Suspect, ...],
) -> None:
    assert {each.origin_id for each in found[:3]} == {"o20", "o30", "o31"}
    assert not {each.origin_id for each in found} & {f"o{k}" for k in UNSURE}
    assert all(each.probability > 0.3 and each.object == 0 for each in found[:3])


def test_points_are_named_with_how_far_off_they_are_and_two_that_changed_places_are_told(
    found: tuple[Suspect, ...], labels: LabelSet
) -> None:
    by_id = {each.origin_id: each for each in found}
    swapped, moved = by_id["o20"], by_id["o30"]
    assert swapped.wrong == "points swapped" and swapped.facts["swapped"] == ["tip", "heel"]
    assert moved.wrong == "point far off" and [each["point"] for each in moved.facts["points"]] == ["middle"]
    (point,) = moved.facts["points"]
    far = np.hypot(*(np.array(point["model_xy"]) - (14.5, 34.5))) / np.hypot(48, 48)
    assert point["off"] == pytest.approx(far, abs=1e-3) and f"{point['off']:.2f} of the size away" in moved.words


def test_a_model_that_says_of_no_point_how_sure_it_is_is_refused(labels: LabelSet) -> None:
    shape = {"padding": "letterbox", "fixed_hw": [64, 64]}
    config = {**small_landmarker(num_keypoints=3, transform=shape)}
    config.pop("neck", None)
    config.pop("codec", None)
    model, weights = random_weights("coordinate_landmarker", 0, config)
    weights = replace(weights, keypoints=POINTS, classes=(ClassInfo(1, "thing"),))
    with pytest.raises(UsageError, match="says of no point how sure it is"):
        suspects_of(evaluate_predictor(Predictor(model, weights), labels))


def test_what_a_map_says_near_a_place_is_its_largest_value_there() -> None:
    maps = torch.zeros(1, 1, 6, 8)
    maps[0, 0, 2, 3] = 0.7
    places = [(3.5, 2.5), (5.5, 2.5), (6.5, 2.5), (5.9, 4.9), (-1.5, 2.0), (float("nan"), 1.0), (99.0, 2.0)]
    values = [float(near(maps, torch.tensor([[place]]))[0, 0]) for place in places]
    assert values == pytest.approx([0.7, 0.7, 0.0, 0.7, 0.0, 0.0, 0.0])
    maps[0, 0, 2, 0] = 0.4
    assert float(near(maps, torch.tensor([[(-1.5, 2.0)]]))[0, 0]) == pytest.approx(0.4), "just beyond the map"
