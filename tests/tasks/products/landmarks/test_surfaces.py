"""Models of surfaces: they learn from labelled points, and are judged by how near each point is found on its part."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flows.parameters import TrainParameters
from flows.train import run_train
from infra.errors import DatasetError, UsageError
from infra.problems import checked
from modelkit import ClassInfo, Predictor
from modelkit.carriers.landmark_detections import LandmarkDetections, PastedSurface
from modelkit.carriers.landmarks import Surface
from modelkit.digitscape import CLASS_NAMES, Digitscape, Scene, write_label_set
from modelkit.metrics.gps import chart_distances
from modelkit.transform import Geometry
from modelkit.weights import random_weights
from tasks.evaluation.evaluate import evaluate_model, evaluate_predictor
from tasks.labels.label_sets import LabelSet
from tasks.labels.reading import read_label_set
from tasks.product import Judgement
from tasks.products.landmarks.keypoints import KIND
from tasks.products.landmarks.learning import target_of
from tasks.training.examples import examples_of_labels
from tasks.training.inspection import inspect_labels
from tasks.training.presets import kind_of_labels, make_recipe, misfit
from tests.modelkit.builders import small_densepose_rcnn

SCENES, POINTS = 12, 40
CLASSES = tuple(ClassInfo(k, name) for k, name in enumerate(CLASS_NAMES, 1))


@pytest.fixture(scope="module")
def source() -> Digitscape:
    return Digitscape("test", (96, 96), seed=2)


@pytest.fixture(scope="module")
def folder(source: Digitscape, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("digits")
    write_label_set(place, source, SCENES, surface_points=POINTS)
    return place


@pytest.fixture(scope="module")
def labels(folder: Path) -> LabelSet:
    return read_label_set(str(folder / "surfaces.json"))


def test_the_surfaces_of_digitscape_are_read_back_as_they_are(labels: LabelSet, source: Digitscape) -> None:
    for k, row in enumerate(labels.table.to_pylist()):
        truth = source.scene(k).surface_points(POINTS, seed=k + 1)
        for read, drawn in zip(row["surface_points"], truth, strict=True):
            np.testing.assert_allclose(read, drawn[drawn[:, 2] >= 0], atol=1e-3)


def test_inspect_counts_them_and_takes_the_labels_for_their_recipe(labels: LabelSet) -> None:
    seen = inspect_labels(labels)
    told = seen.to_json()["surfaces"]
    assert told["objects_with_surfaces"] == 1.0 and told["points_per_object"]["most"] == POINTS and told["parts"] == 10
    assert misfit("keypoints", seen) is None and kind_of_labels(seen) == "instance"
    recipe = make_recipe("digitscape_densepose_rcnn", CLASSES, steps=2, seed=0, seen=seen)
    assert KIND.remarks is not None
    [said] = [each for each in KIND.remarks(seen, recipe) if "surface" in each]
    assert said.endswith(f"have points of their surface, the usual one {POINTS}, on parts up to 10")


def test_targets_have_masks_and_points(labels: LabelSet) -> None:
    model, _ = random_weights("densepose_rcnn", 0, small_densepose_rcnn())
    example = next(each for each in examples_of_labels(labels.table.to_pylist()) if len(each.objects) > 1)
    bare = dataclasses.replace(example.objects[0], rle=None, surface_points=None)
    target = target_of(model)(dataclasses.replace(example, objects=(bare, *example.objects[1:])))
    assert target["surface_points"].shape == (len(example.objects), POINTS, 5)
    assert (target["surface_points"][0, :, 2] == -1).all() and (target["surface_points"][1:, :, 2] > 0).all()
    assert target["mask_weights"].tolist() == [0.0] + [1.0] * (len(example.objects) - 1)
    assert target["masks"].shape == (len(example.objects), 96, 96) and not target["masks"][0].any()


def test_a_recipe_has_the_parts_of_the_labels_and_mirrors_nothing(labels: LabelSet, folder: Path) -> None:
    seen = inspect_labels(labels)
    plain = make_recipe("densepose_rcnn", CLASSES, steps=2, seed=0, seen=seen)
    assert plain.config["heads"]["surface"]["num_parts"] == 24 and plain.config["num_classes"] == 11
    assert "horizontal_flip" not in [each["name"] for each in plain.labelled.augmentation] and not plain.points
    own = make_recipe("digitscape_densepose_rcnn", CLASSES, steps=2, seed=0, seen=seen)
    assert own.config["heads"]["surface"]["num_parts"] == 10
    pointless = inspect_labels(read_label_set(str(folder / "annotations.json")))
    with pytest.raises(UsageError, match="no labelled object has points of its surface"):
        make_recipe("densepose_rcnn", CLASSES, steps=2, seed=0, seen=pointless)


Painting = Callable[[Scene, int], Surface]


def perfect(scene: Scene, k: int) -> Surface:
    """The true surface of an object, as far as a byte can tell."""
    assert scene.uv is not None
    parts = np.where(scene.masks[k], scene.labels[k], 0).astype(np.uint8)
    uv = np.round(255 * np.where(parts > 0, scene.uv.transpose(2, 0, 1), 0.0)).astype(np.uint8)
    return Surface((0, 0), parts, uv)


def shifted(scene: Scene, k: int) -> Surface:
    """Everywhere u is .2 off, to the inner side."""
    whole = perfect(scene, k)
    u = whole.uv[0].astype(int)
    off = np.where(u < 128, u + 51, u - 51)
    return dataclasses.replace(whole, uv=np.stack([off * (whole.parts > 0), whole.uv[1]]).astype(np.uint8))


def half(scene: Scene, k: int) -> Surface:
    """The upper half of the object is told for another part."""
    whole = perfect(scene, k)
    rows = np.flatnonzero(whole.parts.any(1))
    parts = whole.parts.copy()
    parts[: int(np.median(rows))] = np.where(parts[: int(np.median(rows))] > 0, 11, 0)
    return dataclasses.replace(whole, parts=parts)


def judged(
    labels: LabelSet, source: Digitscape, paint: Painting, lost: int | None = None, floor: float = 0.9
) -> Judgement:
    """What a model that finds all objects but one with such surfaces is told to be worth."""
    model, weights = random_weights("densepose_rcnn", 0, small_densepose_rcnn(num_classes=11))
    predictor = Predictor(model, dataclasses.replace(weights, classes=CLASSES))
    place = {predictor.prepare(source.scene(k).image_rgb).pixels.tobytes(): k for k in range(SCENES)}
    inner, shown = predictor.infer, list[int]()

    def infer(prepared: Any) -> Any:  # which pictures share a batch is up to the pipeline
        shown[:] = [place[each.pixels.tobytes()] for each in prepared]
        return inner(prepared)

    def decode(raw: object, geometries: Sequence[Geometry]) -> list[LandmarkDetections]:
        return [found(source.scene(k), each) for k, each in zip(shown, geometries, strict=True)]

    def found(scene: Scene, geometry: Geometry) -> LandmarkDetections:
        kept = [k for k in range(len(scene)) if lost is None or scene.labels[k] != lost]
        surfaces = [paint(scene, k) for k in kept]
        pasted = [PastedSurface((0, 0), torch.from_numpy(np.stack([each.parts, *each.uv]))) for each in surfaces]
        boxes = torch.from_numpy(scene.boxes_xyxy[kept].reshape(-1, 4))
        points = boxes.new_zeros((len(kept), 0, 2))
        return LandmarkDetections(
            geometry.source_hw, boxes, torch.full((len(kept),), floor), torch.from_numpy(scene.labels[kept]).long(),
            points, points[..., 0], surfaces=pasted,
        )  # fmt: skip

    model.decode = decode  # type: ignore[method-assign, assignment]
    predictor.infer = infer  # type: ignore[method-assign]
    return evaluate_predictor(predictor, labels)


def test_true_surfaces_are_worth_everything(labels: LabelSet, source: Digitscape) -> None:
    one = judged(labels, source, perfect)
    assert one.main_figure == pytest.approx(1.0) and list(one.figures) == ["gps", "surface", "box"]
    assert one.figures["surface"]["gps"] > 0.9999 and one.figures["surface"]["part_accuracy"] == 1.0
    assert one.figures["surface"]["uv_error"] < 0.0021  # half a 255th
    assert one.figures["box"]["ap"] == pytest.approx(1.0)
    assert one.resample(np.ones((1, SCENES), np.int64)).overall[0] == pytest.approx(one.main_figure)


def test_a_shift_on_the_chart_is_a_bell_below(labels: LabelSet, source: Digitscape) -> None:
    one = judged(labels, source, shifted)
    assert one.figures["surface"]["uv_error"] == pytest.approx(0.1, abs=0.003)  # of u and v on average
    assert one.figures["surface"]["gps"] == pytest.approx(np.exp(-(0.2**2) / (2 * 0.255**2)), abs=0.003)
    assert one.figures["gps"]["ap"] == pytest.approx(0.5, abs=0.02)  # .735 is enough for .50 to .70: 5 of 10


def test_another_part_is_infinitely_far(labels: LabelSet, source: Digitscape) -> None:
    one = judged(labels, source, half)
    assert 0.3 < one.figures["surface"]["part_accuracy"] < 0.8
    assert one.figures["surface"]["gps"] == pytest.approx(one.figures["surface"]["part_accuracy"], abs=0.05)
    assert one.figures["surface"]["uv_error"] < 0.0021
    assert one.figures["box"]["ap"] == pytest.approx(1.0)


def test_what_is_not_found_counts_nothing(labels: LabelSet, source: Digitscape) -> None:
    whole, one = judged(labels, source, perfect), judged(labels, source, perfect, lost=3)
    counts = [label for row in labels.table["labels"].to_pylist() for label in row]
    assert one.figures["surface"]["gps"] == pytest.approx(1 - counts.count(3) / len(counts), abs=1e-3)
    assert one.figures["gps"]["by_class"]["2"] == 0.0 and one.main_figure < whole.main_figure
    assert one.figures["surface"]["part_accuracy"] == 1.0


def test_a_model_that_finds_nothing_is_worth_nothing(labels: LabelSet, source: Digitscape) -> None:
    one = judged(labels, source, perfect, floor=0.0)  # below what is judged
    assert one.main_figure == 0.0 and one.figures["surface"]["gps"] == 0.0
    assert one.resample(np.ones((2, SCENES), np.int64)).overall.tolist() == [0.0, 0.0]


def test_distances_are_those_on_the_chart() -> None:
    surface = Surface((10, 20), np.array([[1, 2], [0, 1]], np.uint8), np.full((2, 2, 2), 51, np.uint8))
    points = np.array(
        [
            [10.5, 20.5, 1, 0.5, 0.6], [11.5, 20.2, 1, 0.2, 0.2], [10.2, 21.9, 1, 0.2, 0.2],
            [11.9, 21.9, 1, 0.2, 0.2], [12.0, 21.0, 1, 0, 0], [9.9, 20, 1, 0, 0], [10.5, 20.5, 0, 0, 0],
        ]
    )  # fmt: skip
    found = chart_distances(surface, points)
    np.testing.assert_allclose(found, [0.5, np.inf, np.inf, 0.0, np.inf, np.inf, np.nan], atol=1e-12)


def test_labels_without_surfaces_cannot_judge(folder: Path, source: Digitscape) -> None:
    with pytest.raises(DatasetError, match="no labelled object has points of its surface"):
        judged(read_label_set(str(folder / "annotations.json")), source, perfect)


def test_it_is_trained_and_judged_by_the_command_line(folder: Path, tmp_path: Path) -> None:
    seen = inspect_labels(read_label_set(str(folder / "surfaces.json")))
    recipe = make_recipe("digitscape_densepose_rcnn", CLASSES, steps=2, seed=0, seen=seen).to_json()
    (tmp_path / "recipe.json").write_text(json.dumps({**recipe, "batch_size": 2}))
    asked = checked(
        TrainParameters, labelled=str(folder / "surfaces.json"), output=str(tmp_path / "out"),
        recipe=str(tmp_path / "recipe.json"), steps=2, ray="none",
    )  # fmt: skip
    summary = run_train(asked, orchestrated=False)
    assert {"loss_coarse", "loss_part", "loss_u", "loss_v"} <= set(summary["final"])
    found = evaluate_model(summary["weights"], read_label_set(str(folder / "surfaces.json")))
    assert found.kind == KIND.name and 0.0 <= found.main_figure <= 1.0 and found.notes
