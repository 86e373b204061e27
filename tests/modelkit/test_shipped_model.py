"""The shipped model: small enough, its record whole, and its metrics reproduced on scenes it never saw."""

from __future__ import annotations

import pytest

import modelkit
from modelkit.digitscape import CLASS_NAMES, load_digits, picture_names
from modelkit.evaluation import evaluate_digitscape
from modelkit.training.recipes import digitscape_mask_rcnn
from modelkit.training.shipping import TEST_SEED
from modelkit.training.shipping import test_scenes as record_scenes
from modelkit.weights import RECORD, TENSORS, Weights, read_record, shipped_folder

NAME = "digitscape_mask_rcnn"
NUM_SCENES = 100


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
    recipe = digitscape_mask_rcnn()
    assert record.lineage["recipe_fingerprint"] == recipe.fingerprint
    assert record.lineage["recipe"] == recipe.to_json()


def test_the_record_claims_the_promised_precision(record: Weights) -> None:
    metrics = record.metrics["digitscape-test"]
    assert metrics["tool"] == "pycocotools"
    assert metrics["seed"] == TEST_SEED
    assert metrics["scenes"] >= 500
    assert metrics["mask"]["ap50"] >= 0.85
    assert metrics["mask"]["ap"] >= 0.45
    assert set(metrics["mask"]["by_class"]) == set(CLASS_NAMES)


def test_precision_is_reproduced_on_unseen_scenes(record: Weights) -> None:
    """The first hundred of the record's own scenes; both promised limits, and near the record's figures."""
    size_hw = tuple(record.metrics["digitscape-test"]["size_hw"])
    result = evaluate_digitscape(modelkit.load(NAME), record_scenes(size_hw), NUM_SCENES)
    assert result.mask.ap50 >= 0.85
    assert result.mask.ap >= 0.45
    assert result.mask.ap == pytest.approx(record.metrics["digitscape-test"]["mask"]["ap"], abs=0.05)
    assert result.box.ap > result.mask.ap
