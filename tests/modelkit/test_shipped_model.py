"""The shipped model: small enough, its record whole, and its metrics reproduced on scenes it never saw."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from modelkit.digitscape import CLASS_NAMES, STYLES, Digitscape, load_digits, picture_names, write_dataset
from modelkit.records import RECORD, TENSORS, Weights, read_record, shipped_folder
from tasks.evaluation.evaluate import evaluate_model
from tasks.labels.reading import read_label_set
from tasks.training.presets import make_recipe

NAME = "digitscape_mask_rcnn"
NUM_SCENES = 100
TEST_SCENES = Digitscape("test", (160, 160), seed=0, dense=False)
"""What the record's figures refer to: default style, digits and photographs that no training saw."""


@pytest.fixture(scope="module")
def record() -> Weights:
    return read_record(shipped_folder() / f"{NAME}{RECORD}")


def test_the_file_is_under_eight_megabytes() -> None:
    assert (shipped_folder() / f"{NAME}{TENSORS}").stat().st_size < 8_000_000


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
