"""A whole round for points of objects that a detector finds, tiny and without any service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.loop_parameters import RetrainParameters
from flows.retrain import run_retrain
from flows.retrain_plan import plan_retraining
from infra.errors import UsageError
from infra.problems import checked
from infra.store import Store, open_store
from modelkit.digitscape import LANDMARK_NAMES
from tasks.loop.schemas import PSEUDO_LABELS, ROUNDS, THRESHOLD_SETS, VERDICTS
from tasks.output import tables
from tasks.output.views import views_of
from tasks.report.round_page import write_loop_report
from tasks.report.verify import verify
from tasks.training.examples import load_training_set
from tests.flows.tiny_loops import tiny_point_loop


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_point_loop(tmp_path_factory.mktemp("points"))


@pytest.fixture(scope="module")
def round_one(asked: dict[str, Any]) -> tuple[dict[str, Any], Store]:
    summary = run_retrain(checked(RetrainParameters, **asked), orchestrated=False)
    return summary["rounds"][0], open_store(asked["output"])


def test_every_point_of_an_unlabelled_digit_is_a_candidate_and_names_its_rule(
    round_one: tuple[dict[str, Any], Store],
) -> None:
    outcome, store = round_one
    rows = tables.read(store, PSEUDO_LABELS).to_pylist()
    assert {row["name"] for row in rows} == set(LANDMARK_NAMES) and {row["kind"] for row in rows} == {"keypoints"}
    assert len({row["image_id"] for row in rows}) == 12
    names = {row["name"]: row["label"] for row in tables.read(store, THRESHOLD_SETS).to_pylist()}
    assert names == {name: k for k, name in enumerate(LANDMARK_NAMES, 1)}, "each point has a threshold of its own"
    assert {row["reason"] for row in rows} <= {"certified", "below_t_hi", "abstain"}
    assert all(0 <= row["q_views"] <= 1 and row["object_name"].isdigit() for row in rows)
    assert sum(outcome["accepted"].values()) == sum(row["decision"] == "accept" for row in rows) > 0
    assert outcome["unit"] == "points"


def test_the_student_learns_accepted_points_and_no_others(round_one: tuple[dict[str, Any], Store]) -> None:
    outcome, store = round_one
    runs = [json.loads(store.get(info.key)) for info in store.list("training/runs/") if info.key.endswith("run.json")]
    [student] = [run for run in runs if run["recipe"]["name"] == "student"]
    examples = load_training_set(store, student["unlabelled_set"])
    taught = [point for example in examples for each in example.objects for point in each.keypoint_xyv or ()]
    assert sum(v > 0 for _, _, v in taught) == sum(outcome["accepted"].values())
    assert all((x, y) == (0, 0) for x, y, v in taught if v == 0)


def test_the_gate_compares_three_models_by_their_points(round_one: tuple[dict[str, Any], Store]) -> None:
    outcome, store = round_one
    criteria = {row["criterion"]: row for row in tables.read(store, VERDICTS).to_pylist() if row["round"] == 1}
    [round_row] = tables.read(store, ROUNDS).to_pylist()
    gate = json.loads(round_row["metrics_gate"])
    assert gate["box_diagonal"]["auc"] == pytest.approx(outcome["gate"]["candidate"])
    assert criteria["calibration: D-ECE"]["value"] is not None
    assert criteria["audit: labels looked at"]["value"] > 0
    assert criteria["heartbeat: accepted rate"]["value"] < 2
    assert "no class has" not in criteria["classes: fall beyond what is allowed"]["reason"], "points are watched"
    assert round_row["promoted"] == outcome["gate"]["passed"]


def test_a_round_can_be_told_again_from_what_it_left(round_one: tuple[dict[str, Any], Store]) -> None:
    _, store = round_one
    assert verify(store.uri).problems == ()
    views = views_of(store)
    [(count,)] = views.connection.execute("SELECT count(*) FROM label_lineage WHERE decision = 'accept'").fetchall()
    views.connection.close()
    assert count > 0
    page = write_loop_report(store.uri, samples=4, last_only=True)
    assert page.index_uri.endswith("index.html")
    [written] = [info.key for info in store.list("report/rounds/")]
    text = store.get(written).decode()
    assert all(name in text for name in LANDMARK_NAMES) and "data:image/" in text and "not read" not in text


def test_a_plan_counts_points(asked: dict[str, Any]) -> None:
    plan = plan_retraining(checked(RetrainParameters, **asked, class_precision={"centre": 0.8}))
    assert list(plan["classes"]) == list(LANDMARK_NAMES) and plan["evidence_unit"] == "labelled points"
    centre, top = plan["classes"]["centre"], plan["classes"]["top"]
    assert centre["calibration"] == {"points": centre["evidence"]} and centre["promise"] == 0.8
    assert top["promise"] == 0.6 and top["watched"] and plan["can_certify"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"detector": None}, "nobody says where those of unlabelled images are"),
        ({"box_classes": ["digit"]}, "boxes have no class 'digit'"),
        ({"class_precision": {"nose": 0.7}}, "names nose: there is no such class"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    asked: dict[str, Any], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    parameters = checked(RetrainParameters, **{**asked, **changes, "output": str(tmp_path / "new")})
    with pytest.raises(UsageError, match=said):
        plan_retraining(parameters)
    with pytest.raises(UsageError, match=said):
        run_retrain(parameters, orchestrated=False)


def test_who_finds_objects_names_a_loop_only_where_somebody_does(asked: dict[str, Any]) -> None:
    plain = checked(RetrainParameters, **{**asked, "detector": None})
    assert plain.object_options() == {} and checked(RetrainParameters, **asked).object_options() == {
        "detector": "digitscape_mask_rcnn", "box_score": 0.5, "box_classes": [],
    }  # fmt: skip
