"""Boxes of models of this kind: those without points learn and are judged as detectors; those with points, by both."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flows.parameters import TrainParameters
from flows.train import run_train
from infra.errors import UsageError
from infra.problems import checked
from modelkit import ClassInfo, Predictor, describe
from modelkit.carriers.landmark_detections import LandmarkDetections
from modelkit.digitscape import Digitscape, write_label_set
from modelkit.transform import Geometry
from modelkit.weights import random_weights
from tasks.evaluation.evaluate import evaluate_predictor
from tasks.evaluation.suspects import suspects_of
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.labels.points import point_set
from tasks.labels.reading import read_label_set
from tasks.products.landmarks.keypoints import KIND
from tasks.training.inspection import inspect_labels
from tasks.training.presets import make_recipe
from tests.flows.command import ask, visionmill
from tests.modelkit.builders import small_centernet, small_cornernet

SIZE, PICTURES = 64, 40
CLASSES = (ClassInfo(1, "cup"), ClassInfo(2, "pot"))
BOXES = ((4.0, 6.0, 24.0, 30.0), (30.0, 34.0, 60.0, 62.0))
POINTS = point_set(["left_tip", "right_tip"])


def labelled(folder: Path, *, points: bool, wrong: int | None = None) -> LabelSet:
    """Pictures that all show a cup and a pot at the same places; that of number ``wrong`` calls both pots."""
    given = ((8.0, 8.0, 2.0), (20.0, 8.0, 2.0)) if points else None
    items = []
    for k in range(PICTURES):
        path = folder / f"{k:02d}.png"
        Image.fromarray(np.full((SIZE, SIZE, 3), 90, np.uint8)).save(path)
        first = 2 if k == wrong else 1
        objects = [LabelledObject(label, None, box, keypoint_xyv=given)
                   for label, box in zip((first, 2), BOXES, strict=True)]  # fmt: skip
        items.append(LabelledItem(str(path), (SIZE, SIZE), tuple(objects)))
    return make_label_set(items, CLASSES, origin_format="test", points=POINTS if points else None)


def oracle() -> Predictor:
    """A cornernet that finds a cup and a pot at their places, whatever it is shown."""
    model, weights = random_weights("cornernet", 0, small_cornernet(num_classes=3))
    return finding(Predictor(model, weights), torch.zeros(2, 0, 2))


def pointing(shift: float = 0.0) -> Predictor:
    """A CenterNet that also finds the labelled points, its boxes ``shift`` pixels to the right."""
    model, weights = random_weights("centernet", 0, small_centernet(num_classes=3, num_keypoints=2))
    points = torch.tensor([[[8.0, 8.0], [20.0, 8.0]]] * 2)
    return finding(Predictor(model, dataclasses.replace(weights, keypoints=POINTS)), points, shift)


def finding(predictor: Predictor, points: Tensor, shift: float = 0.0) -> Predictor:
    """One that finds the two boxes with points (2, K, 2) in whatever it is shown."""
    boxes, sure = torch.tensor(BOXES) + torch.tensor([shift, 0.0, shift, 0.0]), torch.ones(points.shape[:2])

    def decode(raw: object, geometries: Sequence[Geometry]) -> list[LandmarkDetections]:
        return [
            LandmarkDetections(
                each.source_hw, boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 2]), points, sure
            )
            for each in geometries
        ]  # fmt: skip

    predictor.model.decode = decode  # type: ignore[method-assign, assignment]
    return Predictor(predictor.model, dataclasses.replace(predictor.weights, classes=CLASSES))


@pytest.mark.parametrize("points", [True, False])
def test_they_are_judged_by_their_boxes_whatever_points_are_labelled(points: bool, tmp_path: Path) -> None:
    judged = evaluate_predictor(oracle(), labelled(tmp_path, points=points))
    assert list(judged.figures) == ["box", "counts"]
    assert judged.main_figure == 1.0 and judged.class_names == ("cup", "pot")
    assert judged.figures["counts"]["right"] == 2 * PICTURES
    worse = evaluate_predictor(oracle(), labelled(tmp_path, points=points, wrong=3))
    assert worse.main_figure < 1.0
    everything, without = worse.resample(np.stack([np.ones(PICTURES), np.arange(PICTURES) != 3])).overall
    assert everything == pytest.approx(worse.main_figure) and without == 1.0


def test_those_with_points_that_find_their_objects_are_judged_by_points_and_by_boxes(tmp_path: Path) -> None:
    with_points, without = (labelled(tmp_path, points=points) for points in (True, False))
    judged = evaluate_predictor(pointing(), with_points)
    assert list(judged.figures) == ["oks", "box"] and judged.main_figure == judged.figures["box"]["ap"] == 1.0
    beside = evaluate_predictor(pointing(shift=4.0), with_points).figures
    assert beside["oks"]["ap"] == 1.0 and 0.0 < beside["box"]["ap"] <= 0.5
    alone = evaluate_predictor(pointing(shift=4.0), without)
    assert list(alone.figures) == ["box", "counts"] and alone.figures["box"]["ap"] == beside["box"]["ap"]
    assert alone.notes[-1] == "no labelled object has points, so that only boxes are judged"


def test_what_they_doubt_of_labels_is_classes_and_boxes(tmp_path: Path) -> None:
    found = suspects_of(evaluate_predictor(oracle(), labelled(tmp_path, points=True, wrong=3)))
    [suspect] = [each for each in found.labelled if each.probability > 0.5]
    assert (suspect.wrong, suspect.object, Path(suspect.uri).name) == ("wrong class", 0, "03.png")


@pytest.mark.parametrize("points", [True, False])
@pytest.mark.parametrize("preset", ["cornernet", "centernet_triplet", "digitscape_cornernet"])
def test_corners_have_no_points_whatever_is_labelled(preset: str, points: bool, tmp_path: Path) -> None:
    labels = labelled(tmp_path, points=points)
    recipe = make_recipe(preset, CLASSES, seed=0, seen=inspect_labels(labels))
    assert (recipe.config["num_keypoints"], recipe.config["num_classes"], recipe.points) == (0, 3, {})


def test_centres_have_points_where_labels_have_some_and_nobody_says_otherwise(tmp_path: Path) -> None:
    with_points, without = (inspect_labels(labelled(tmp_path, points=points)) for points in (True, False))

    def points_for(preset: str, seen: Any) -> Any:
        return make_recipe(preset, CLASSES, seed=0, seen=seen).config["num_keypoints"]

    assert points_for("centernet", with_points) == 2
    assert points_for("centernet", without) == 0
    stated = make_recipe("centernet", CLASSES, seed=0, seen=with_points).to_json()
    (tmp_path / "stated.json").write_text(json.dumps(stated | {"config": {**stated["config"], "num_keypoints": 0}}))
    assert points_for(str(tmp_path / "stated.json"), with_points) == 0
    for preset in ("centernet_pose", "keypoint_rcnn", "retinaface"):
        with pytest.raises(UsageError, match="no labelled object has points"):
            points_for(preset, without)


def test_the_loop_says_that_it_teaches_points(tmp_path: Path) -> None:
    recipe = make_recipe("digitscape_cornernet", CLASSES, seed=0, seen=inspect_labels(labelled(tmp_path, points=True)))
    assert KIND.loop is not None
    with pytest.raises(UsageError, match="boxes without points, and what the loop teaches are points"):
        KIND.loop.open(recipe, ())


@pytest.mark.parametrize("preset", ["digitscape_cornernet", "digitscape_centernet_triplet"])
def test_a_few_digits_are_learnt_by_heart_and_found_again_as_boxes_without_points(preset: str, tmp_path: Path) -> None:
    written = write_label_set(tmp_path / "digits", Digitscape("train", (96, 96), seed=2, dense=False), 4)
    labels = read_label_set(str(written[2]))
    recipe = make_recipe(preset, labels.classes, steps=25, seed=0, seen=inspect_labels(labels)).to_json()
    backbone = {"widths": [32, 32, 48], "depths": [1, 1, 1], "stem_width": 16, "channels": 32}
    recipe["config"] |= {
        "backbone": {**recipe["config"]["backbone"], **backbone},
        "transform": {"min_size": 96, "max_size": 96, "size_divisible": 16},
    }
    recipe["loop"] |= {"learning_rate": 4e-3, "ema_decay": 0.8, "warmup_steps": 5, "decay_from": 12}
    (tmp_path / "tiny.json").write_text(json.dumps(recipe | {"batch_size": 4}))
    given = {"labelled": str(written[2]), "output": str(tmp_path / "out"), "recipe": str(tmp_path / "tiny.json")}
    done = run_train(checked(TrainParameters, **given, ray="none", evaluate=str(written[2])), orchestrated=False)
    record = describe(done["weights"])
    first, last = (record.lineage["history"][place]["loss_corner"] for place in (0, -1))
    assert record.keypoints is None and last < first / 10
    assert done["metrics"]["box"]["ap50"] > 0.8
    words = ("--model", done["weights"], "--ray", "none", "--no-prefect", "--no-report", "--compile", "off")
    visionmill("landmark", tmp_path / "digits" / "images", tmp_path / "found", *words, "--score-threshold", "0.3")
    rows = ask(tmp_path / "found", "SELECT * FROM items ORDER BY uri")
    assert len(rows) == 4 and sum(len(row["labels"]) for row in rows) > 4
    for row in rows:
        assert len(row["boxes_xyxy"]) == len(row["labels"]) and row["keypoint_set"] is None
        assert row["keypoints_xy"] == row["visibility"] == [[]] * len(row["labels"])
