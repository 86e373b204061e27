"""Shipped models: small enough, their records whole, and their figures reproduced on what they never saw."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from benchmarks.photographs_data import divided
from modelkit import load
from modelkit.digitscape import (
    CLASS_NAMES,
    LANDMARK_NAMES,
    STYLES,
    Digitscape,
    load_digits,
    picture_names,
    write_dataset,
)
from modelkit.records import RECORD, TENSORS, Weights, read_record, shipped_folder, shipped_records
from tasks.evaluation.evaluate import evaluate_model
from tasks.labels.reading import read_label_set
from tasks.training.presets import make_recipe

NAME, NUCLEI, POINTS = "digitscape_mask_rcnn", "nuclei", "digitscape_heatmap"
NUCLEI_DATA = Path(__file__).parents[3] / "shared" / "data" / "dsb2018"
NUM_SCENES = 100
TEST_SCENES = Digitscape("test", (160, 160), seed=0, dense=False)
"""What the record's figures refer to: default style, digits and photographs that no training saw."""


@pytest.fixture(scope="module")
def record() -> Weights:
    return read_record(shipped_folder() / f"{NAME}{RECORD}")


def test_every_file_is_under_eight_megabytes_and_says_what_it_is_for() -> None:
    assert {each.name for each in shipped_records()} == {NAME, NUCLEI, POINTS}
    for each in shipped_records():
        assert (shipped_folder() / f"{each.name}{TENSORS}").stat().st_size < 8_000_000
        assert "Apache-2.0" in each.licence and each.metrics
        assert "/tmp" not in json.dumps(each.to_json()) and "/work" not in json.dumps(each.to_json())


def test_the_record_says_what_how_and_from_where(record: Weights) -> None:
    assert record.name == NAME
    assert record.architecture == "mask_rcnn"
    assert record.kind == "instance"
    assert [c.name for c in record.classes] == list(CLASS_NAMES)
    assert [c.id for c in record.classes] == list(range(1, 11))
    assert record.num_parameters < 4_000_000
    assert "Apache-2.0" in record.licence
    assert record.preprocessing["min_size"] > 0
    lineage = record.lineage
    assert lineage["kind"] == "trained"
    assert lineage["steps"] == lineage["recipe"]["loop"]["steps"], "trained to the end of its recipe"
    assert lineage["skipped_steps"] == 0
    assert lineage["training_seconds"] > 0
    assert lineage["data"]["train_digits"] == len(load_digits("train").labels)
    assert lineage["data"]["test_pictures"] == list(picture_names("test"))


def test_the_recipe_in_the_repository_is_the_one_that_trained_it(record: Weights) -> None:
    """The record names things as the training of November 2026 did."""
    stated = record.lineage["recipe"]
    recipe = make_recipe(NAME, record.classes, steps=stated["loop"]["steps"], seed=stated["loop"]["seed"])
    assert {"name": recipe.architecture, **recipe.config} == stated["model"]
    assert json.loads(json.dumps(dataclasses.asdict(STYLES["hard"]))) == stated["style"]
    assert dataclasses.asdict(recipe.loop) == stated["loop"]
    assert recipe.auxiliary is not None and recipe.inference == {"transform": stated["shipped_transform"]}
    head = (recipe.auxiliary.weight, recipe.auxiliary.alone, recipe.batch_size)
    assert head == (stated["semantic_weight"], stated["dense_steps"], stated["batch_size"])


def test_the_record_claims_the_promised_precision(record: Weights) -> None:
    metrics = record.metrics["digitscape-test"]
    assert metrics["tool"] == "pycocotools"
    assert metrics["scenes"] >= 500
    assert metrics["mask"]["ap50"] >= 0.85
    assert metrics["mask"]["ap"] >= 0.45
    assert set(metrics["mask"]["by_class"]) == set(CLASS_NAMES)


def test_precision_is_reproduced_on_unseen_scenes(record: Weights, tmp_path: Path) -> None:
    """The first hundred of the record's own scenes; both promised limits, and near the record's figures."""
    labels = read_label_set(str(write_dataset(tmp_path, TEST_SCENES, NUM_SCENES, image_format="png")))
    figures = evaluate_model(NAME, labels).figures
    assert figures["mask"]["ap50"] >= 0.85
    assert figures["mask"]["ap"] >= 0.45
    assert figures["mask"]["ap"] == pytest.approx(record.metrics["digitscape-test"]["mask"]["ap"], abs=0.05)
    assert figures["box"]["ap"] > figures["mask"]["ap"]


def test_the_model_of_points_names_them_and_says_how_far_it_is_off() -> None:
    record = read_record(shipped_folder() / f"{POINTS}{RECORD}")
    assert record.keypoints is not None and record.keypoints.names == LANDMARK_NAMES
    assert [c.name for c in record.classes] == list(CLASS_NAMES)
    assert record.lineage["steps"] == record.lineage["recipe"]["loop"]["steps"], "trained to the end of its recipe"
    assert record.metrics["digitscape-test"]["images"] >= 500
    assert record.metrics["digitscape-test"]["object_diagonal"]["nme"] <= 0.05


def test_no_record_names_a_place_on_the_machine_that_trained_it() -> None:
    for path in shipped_folder().glob(f"*{RECORD}"):
        text = path.read_text()
        assert '"/' not in text and TENSORS not in text, path.name


def test_its_error_is_reproduced_on_unseen_scenes(tmp_path: Path) -> None:
    labels = read_label_set(str(write_dataset(tmp_path, TEST_SCENES, NUM_SCENES, image_format="png")))
    found = evaluate_model(POINTS, labels).figures["object_diagonal"]
    record = read_record(shipped_folder() / f"{POINTS}{RECORD}")
    assert found["nme"] == pytest.approx(record.metrics["digitscape-test"]["object_diagonal"]["nme"], abs=0.008)


def test_the_model_of_nuclei_says_what_it_learnt_from_and_what_it_cannot_do() -> None:
    record = read_record(shipped_folder() / f"{NUCLEI}{RECORD}")
    assert [each.name for each in record.classes] == ["nucleus"]
    assert "CC0" in record.licence and "not for diagnosis" in record.lineage["limits"]
    counts = record.metrics["dsb2018-fifth"]["counts"]
    assert counts["accuracy50"] == pytest.approx(
        counts["right"] / (counts["right"] + counts["made_up"] + counts["missed"]), abs=1e-3
    )


def test_bright_round_things_are_nuclei_to_it_one_by_one() -> None:
    """The 24 coins of scikit-image's picture: real, round, bright on dark, and here without a download."""
    [found] = load(NUCLEI)([np.stack([skimage.data.coins()] * 3, axis=-1)])
    found = found.chosen(np.flatnonzero(found.scores >= 0.5))
    sides = found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]
    assert 22 <= len(found) <= 27
    assert np.median(sides) == pytest.approx(45, abs=10), "a coin is 35 to 65 pixels wide"


@pytest.mark.skipif(not NUCLEI_DATA.is_dir(), reason="the pictures of nuclei are not here")
def test_what_it_finds_of_nuclei_is_what_its_record_says(tmp_path: Path) -> None:
    _, judged = divided(NUCLEI_DATA.parent, "dsb2018", 0, tmp_path)
    labels = read_label_set(str(judged))
    labels = labels.only(set(labels.table["image_id"].to_pylist()[::6]))
    found = evaluate_model(NUCLEI, labels).figures
    assert found["counts"]["accuracy50"] == pytest.approx(0.709, abs=0.12)
