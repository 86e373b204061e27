"""A loop that is told neither a kind nor a recipe, and whose teacher, hardly trained, can be certified for nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.cli.training import round_in_words
from flows.loop_parameters import RetrainParameters
from flows.retrain import run_retrain
from flows.retrain_plan import plan_retraining
from infra.errors import UsageError
from infra.problems import checked
from infra.store import Store, open_store
from modelkit.digitscape import Digitscape, write_dataset, write_panoptic
from tasks.loop.schemas import MODELS, PSEUDO_LABELS, ROUNDS, VERDICTS
from tasks.output import tables
from tasks.report.round_page import write_loop_report
from tasks.report.verify import verify
from tests.flows.tiny_loops import SIZE, STYLE


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("nothing")
    source = Digitscape("train", SIZE, seed=6, style=STYLE, dense=False)
    scenes = write_dataset(folder / "unlabelled", source, 3, first=500, image_format="png")
    return {
        "labelled": str(write_panoptic(folder / "labelled", source, 12, image_format="png")),
        "unlabelled": str(scenes.parent / "images"),
        "output": str(folder / "loop"),
        "task": "semantic",
        "steps": 1,
        "rounds": 2,
        "shares": {"train": 0.4, "calibration": 0.3, "gate": 0.3},
        "precision": 0.99,
        "ray": "none",
    }


@pytest.fixture(scope="module")
def ended(asked: dict[str, Any]) -> tuple[dict[str, Any], Store]:
    return run_retrain(checked(RetrainParameters, **asked), orchestrated=False), open_store(asked["output"])


def test_a_round_in_which_nothing_was_accepted_trains_no_student_and_says_so(
    ended: tuple[dict[str, Any], Store],
) -> None:
    summary, store = ended
    [outcome] = summary["rounds"]  # of two that were asked for: another one would see the same
    assert outcome["candidate"] is None and outcome["accepted"] == {} and not outcome["gate"]["passed"]
    assert outcome["gate"]["reasons"] == [
        "nothing was accepted, so no student was trained and the gate set was not looked at"
    ]
    assert round_in_words(outcome) == "round 1: 0 pixels accepted; it ended there"
    assert all("need" in note for note in outcome["abstaining"].values())
    assert {row["role"] for row in tables.read(store, MODELS).to_pylist()} == {"teacher"}
    [record] = tables.read(store, ROUNDS).to_pylist()
    assert (record["candidate_id"], record["n_pseudo"], record["promoted"], record["looks_used"]) == (None, 0, False, 0)
    assert {row["reason"] for row in tables.read(store, PSEUDO_LABELS).to_pylist()} == {"abstain"}
    assert all(row["round"] == 0 for row in tables.read(store, VERDICTS).to_pylist()), "the gate was asked nothing"


def test_its_page_says_why_and_not_that_nobody_looked(ended: tuple[dict[str, Any], Store]) -> None:
    summary, store = ended
    write_loop_report(store.uri, samples=0)
    page = store.get(f"report/rounds/{summary['run_id']}-0001.html").decode()
    assert "the round ended before a student was trained" in page and "there was nothing to look at" in page
    assert "Nobody has looked" not in page


def test_it_can_be_verified_and_the_next_loop_begins_with_no_look_spent(
    ended: tuple[dict[str, Any], Store], asked: dict[str, Any]
) -> None:
    summary, store = ended
    assert verify(store.uri).num_rounds == 1
    again = run_retrain(checked(RetrainParameters, **asked), orchestrated=False)
    assert again["run_id"] != summary["run_id"], "the first has ended"
    starts = [json.loads(store.get(info.key)) for info in store.list("_loops/") if info.key.endswith("round-1.json")]
    assert [start["looks_used"] for start in starts] == [1, 1]


def test_all_its_models_have_the_recipe_that_the_labels_call_for_and_it_is_kept(
    ended: tuple[dict[str, Any], Store], asked: dict[str, Any]
) -> None:
    summary, store = ended
    kept = json.loads(store.get(f"_loops/{summary['run_id']}/recipe.json"))
    assert summary["kind"] == "semantic" and kept == json.loads(json.dumps(summary["recipe"]))
    assert (kept["architecture"], kept["initial"]) == ("deeplabv3plus", "imagenet")
    assert kept["labelled"] == kept["unlabelled"], "the first teacher gets the student's noise"
    [run] = [json.loads(store.get(each.key)) for each in store.list("training/runs/") if each.key.endswith("run.json")]
    assert {**run["recipe"], "initial_digest": None} == {**kept, "initial_digest": None}


def test_a_plan_says_in_advance_what_cannot_be_and_writes_nothing(asked: dict[str, Any], tmp_path: Path) -> None:
    parameters = checked(RetrainParameters, **{**asked, "output": str(tmp_path / "none"), "precision": 0.9})
    plan = plan_retraining(parameters)
    assert not (tmp_path / "none").exists()
    assert plan["kind"] == "semantic" and plan["recipe"]["steps"] == 1
    assert {name: extent["images"] for name, extent in plan["splits"].items()} == {
        "train": 5, "calibration": 4, "gate": 3, "test": 0,
    }  # fmt: skip
    assert not plan["can_certify"] and not plan["can_pass"]
    assert all(each["abstains"] for each in plan["classes"].values())
    told = " ".join(plan["problems"])
    assert "no class can be certified: 4 in all, 14 are needed" in told
    assert "gate: 3 groups cannot show a gain" in told and "without --audit the gate stays shut" in told
    with pytest.raises(UsageError, match="--class-precision names zebra"):
        plan_retraining(parameters.model_copy(update={"class_precision": {"zebra": 0.7}}))
    with pytest.raises(UsageError, match="--geometry-precision promises"):
        plan_retraining(parameters.model_copy(update={"geometry_precision": 0.6}))
