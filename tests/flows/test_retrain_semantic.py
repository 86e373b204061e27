"""A whole round for semantic segmentation, tiny and without any service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.loop_parameters import RetrainParameters
from flows.retrain import run_retrain
from infra.errors import UsageError
from infra.problems import checked
from infra.store import Store, open_store
from modelkit import rle
from tasks.loop.schemas import PSEUDO_LABELS, ROUNDS, VERDICTS
from tasks.output import tables
from tasks.products.segments.pixels import LEVELS
from tasks.training.examples import load_training_set
from tests.flows.tiny_loops import SIZE, tiny_loop


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_loop(tmp_path_factory.mktemp("semantic"))


@pytest.fixture(scope="module")
def round_one(asked: dict[str, Any]) -> tuple[dict[str, Any], Store]:
    summary = run_retrain(checked(RetrainParameters, **asked), orchestrated=False)
    return summary["rounds"][0], open_store(asked["output"])


def test_every_unlabelled_pixel_is_a_candidate_once_and_names_its_rule(round_one: tuple[dict[str, Any], Store]) -> None:
    outcome, store = round_one
    rows = tables.read(store, PSEUDO_LABELS).to_pylist()
    seen = {row["image_id"]: np.zeros(SIZE, np.int64) for row in rows}
    for row in rows:
        seen[row["image_id"]] += rle.decode(row["rle"], SIZE)
    assert len(seen) == 8 and all((count == 1).all() for count in seen.values())
    assert {row["score"] for row in rows} <= set(LEVELS)
    assert "background" in outcome["accepted"], "what no object covers is certified like any class"
    accepted = sum(row["area"] for row in rows if row["decision"] == "accept")
    assert accepted == sum(outcome["accepted"].values())
    assert {row["reason"] for row in rows} <= {"certified", "below_t_hi", "abstain"}
    assert {row["tta_spec"] for row in rows} == {'["0.75x"]'}


def test_accepted_pixels_teach_and_all_others_are_unsure(round_one: tuple[dict[str, Any], Store]) -> None:
    outcome, store = round_one
    runs = [json.loads(store.get(info.key)) for info in store.list("training/runs/") if info.key.endswith("run.json")]
    [student] = [run for run in runs if run["recipe"]["name"] == "student"]
    examples = load_training_set(store, student["unlabelled_set"])
    taught = sum(int((~rle.decode(each.unsure_rle or b"", SIZE)).sum()) for each in examples)
    assert taught == sum(outcome["accepted"].values())
    assert all(each.label > 0 for example in examples for each in example.objects), "background is painted by nobody"


def test_the_gate_compares_mean_iou_of_three_models(round_one: tuple[dict[str, Any], Store]) -> None:
    outcome, store = round_one
    criteria = {row["criterion"]: row for row in tables.read(store, VERDICTS).to_pylist() if row["round"] == 1}
    [round_row] = tables.read(store, ROUNDS).to_pylist()
    gate = json.loads(round_row["metrics_gate"])
    assert gate["task"] == "semantic" and gate["semantic"]["miou"] == pytest.approx(outcome["gate"]["candidate"])
    assert criteria["calibration: D-ECE"]["value"] is not None
    assert criteria["audit: labels looked at"]["value"] > 0
    assert criteria["heartbeat: accepted rate"]["value"] < 2
    assert criteria["heartbeat: unlabelled over supervised loss"]["passed"]
    assert criteria["heartbeat: entropy of predictions on unlabelled items against calibration"]["passed"], (
        "both are scenes of one kind"
    )
    assert round_row["promoted"] == outcome["gate"]["passed"]


def test_a_model_of_another_kind_is_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"teach instance; unet does semantic"):
        run_retrain(
            checked(RetrainParameters, **{**asked, "task": "instance", "output": str(tmp_path)}), orchestrated=False
        )
