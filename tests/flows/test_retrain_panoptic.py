"""A whole round for panoptic segmentation, tiny and without any service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.loop_parameters import RetrainParameters
from flows.retrain import run_retrain
from flows.retrain_plan import plan_retraining
from infra.errors import UsageError
from infra.problems import checked
from infra.store import Store, open_store
from modelkit import rle
from tasks.loop.schemas import PSEUDO_LABELS, ROUNDS, THRESHOLD_SETS, VERDICTS
from tasks.output import tables
from tasks.report.round_page import write_loop_report
from tasks.training.examples import load_training_set
from tests.flows.tiny_loops import tiny_panoptic_loop

THINGS = set(range(1, 11))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_panoptic_loop(tmp_path_factory.mktemp("panoptic"))


@pytest.fixture(scope="module")
def round_one(asked: dict[str, Any]) -> tuple[dict[str, Any], Store]:
    summary = run_retrain(checked(RetrainParameters, **asked), orchestrated=False)
    return summary["rounds"][0], open_store(asked["output"])


def test_every_unlabelled_segment_is_a_candidate_and_names_its_rule(round_one: tuple[dict[str, Any], Store]) -> None:
    outcome, store = round_one
    rows = tables.read(store, PSEUDO_LABELS).to_pylist()
    assert len({row["image_id"] for row in rows}) == 10
    assert {row["kind"] for row in rows} == {"panoptic"} and {row["label"] in THINGS for row in rows} == {
        True,
        False,
    }
    covered = {row["image_id"]: np.zeros((96, 96), int) for row in rows}
    for row in rows:
        covered[row["image_id"]] += rle.decode(row["rle"], (96, 96))
    assert all(count.max() == 1 for count in covered.values()), "segments of a map never overlap"
    assert {row["decision"] for row in rows} <= {"accept", "ignore"}
    assert sum(outcome["accepted"].values()) == sum(row["decision"] == "accept" for row in rows) > 0


def test_stuff_of_few_images_is_watched_by_its_pixels(asked: dict[str, Any]) -> None:
    classes = plan_retraining(checked(RetrainParameters, **asked))["classes"].values()
    few = [each for each in classes if each["gate"]["objects"] < 30]
    assert {each["watched"] for each in few} == {True, False}
    assert all(each["watched"] is (each["gate"]["pixels"] >= 1000) for each in few)


def test_things_and_stuff_are_certified_apart(round_one: tuple[dict[str, Any], Store]) -> None:
    rows = tables.read(round_one[1], THRESHOLD_SETS).to_pylist()
    certified = {kind: {row["t_hi"] for row in rows if row["t_hi"] and (row["label"] in THINGS) is kind}
                 for kind in (True, False)}  # fmt: skip
    assert certified[True] and certified[False], [(row["name"], row["note"]) for row in rows]
    assert not certified[True] & certified[False], "a pool of digits says nothing about grounds"


def test_accepted_segments_teach_and_what_is_left_is_void(round_one: tuple[dict[str, Any], Store]) -> None:
    outcome, store = round_one
    runs = [json.loads(store.get(info.key)) for info in store.list("training/runs/") if info.key.endswith("run.json")]
    [student] = [run for run in runs if run["recipe"]["name"] == "student"]
    examples = load_training_set(store, student["unlabelled_set"])
    assert sum(len(each.objects) for each in examples) == sum(outcome["accepted"].values())
    for example in examples:
        taught = sum(rle.area(each.rle or b"") for each in example.objects)
        assert taught + rle.area(example.void_rle or b"") == 96 * 96


def test_the_gate_compares_panoptic_quality_of_three_models(
    round_one: tuple[dict[str, Any], Store], asked: dict[str, Any]
) -> None:
    outcome, store = round_one
    criteria = {row["criterion"]: row for row in tables.read(store, VERDICTS).to_pylist()}
    [round_row] = tables.read(store, ROUNDS).to_pylist()
    gate = json.loads(round_row["metrics_gate"])
    assert gate["task"] == "panoptic" and gate["panoptic"]["pq"] == pytest.approx(outcome["gate"]["candidate"])
    assert outcome["gate"]["baseline"] > 0.2, "the detector inside began as the shipped one"
    measured = ("better: gain over the champion", "calibration: D-ECE", "heartbeat: unlabelled over supervised loss")
    assert all(criteria[name]["value"] is not None for name in measured)
    assert criteria["audit: labels looked at"]["value"] == sum(outcome["accepted"].values())
    write_loop_report(asked["output"])
    [page] = [info.key for info in store.list("report/rounds/")]
    shown = store.get(page).decode()
    assert "PQ of things" in shown and "class plain" in shown


def test_several_views_are_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one view"):
        run_retrain(
            checked(RetrainParameters, **{**asked, "tta": ["0.75x"], "output": str(tmp_path)}), orchestrated=False
        )
