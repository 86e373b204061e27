"""A round without a calibration set, tiny: every label teaches and calibrates, but never one and the same model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.loop_parameters import RetrainParameters
from flows.retrain import run_retrain
from flows.steps import plain_steps
from infra.errors import UsageError
from infra.problems import checked
from infra.store import Store, open_store
from tasks.loop.schemas import MODELS, SPLIT_ITEMS, VERDICTS
from tasks.output import tables
from tasks.output.views import open_views
from tests.flows.tiny_loops import tiny_loop

FOLDS = 2


class ReachedError(RuntimeError):
    """The loop has come this far."""


def up_to_inference(title: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Steps that end before the teacher looks at unlabelled items."""
    if title.endswith("infer"):
        raise ReachedError(title)
    return plain_steps(title, function, *args, **kwargs)


class Watched:
    """Steps that keep which items each was given."""

    def __init__(self) -> None:
        self.items: dict[str, set[str]] = {}

    def __call__(self, title: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        labels = next((each for each in args if hasattr(each, "label_set_id") and hasattr(each, "table")), None)
        if labels is not None:
            self.items[title.removeprefix("round 1: ")] = set(labels.table["image_id"].to_pylist())
        return plain_steps(title, function, *args, **kwargs)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    tiny = tiny_loop(tmp_path_factory.mktemp("crossfit"))
    return {**tiny, "steps": 50, "calibration": "crossfit", "folds": FOLDS}


@pytest.fixture(scope="module")
def round_one(asked: dict[str, Any]) -> tuple[dict[str, Any], Store, Watched]:
    watched = Watched()
    summary = run_retrain(checked(RetrainParameters, **asked), orchestrated=False, step=watched)
    return summary, open_store(asked["output"]), watched


def test_every_label_is_looked_at_once_by_a_model_that_never_saw_it(
    round_one: tuple[dict[str, Any], Store, Watched],
) -> None:
    summary, store, watched = round_one
    items = tables.read(store, SPLIT_ITEMS).to_pylist()
    labelled = {row["image_id"] for row in items if row["split"] == "train"}
    assert summary["splits"]["train"] == len(labelled) and "calibration" not in summary["splits"], "its share trains"
    looked = [watched.items[f"look at fold-{k + 1}"] for k in range(FOLDS)]
    assert set.union(*looked) == labelled and sum(map(len, looked)) == len(labelled)
    for k in range(FOLDS):
        assert watched.items[f"train fold-{k + 1}"] == labelled - looked[k]


def test_the_teacher_is_the_supervised_model_of_all_labels(round_one: tuple[dict[str, Any], Store, Watched]) -> None:
    summary, store, _ = round_one
    [outcome] = summary["rounds"]
    roles = [row["role"] for row in tables.read(store, MODELS).to_pylist()]
    assert sorted(roles) == ["fold"] * FOLDS + ["student", "teacher"]
    assert outcome["gate"]["baseline"] == outcome["gate"]["champion"]
    criteria = {row["criterion"]: row for row in tables.read(store, VERDICTS).to_pylist() if row["round"] == 1}
    assert 0 < criteria["calibration: D-ECE"]["value"] < 1, "each half of the gate set was calibrated on the other"
    assert outcome["accepted"]["background"] > 0
    runs = [json.loads(store.get(info.key)) for info in store.list("training/runs/") if info.key.endswith("run.json")]
    by_name = {run["recipe"]["name"]: run for run in runs}
    assert by_name["student"]["labelled_set"] == by_name["teacher"]["labelled_set"]


def test_the_data_of_a_model_is_all_that_trains_and_of_a_fold_what_it_was_given(
    round_one: tuple[dict[str, Any], Store, Watched],
) -> None:
    summary, store, _ = round_one
    with open_views(store.uri) as connection:
        counts = connection.sql(
            "SELECT role, count(DISTINCT image_id) FROM models m JOIN model_data d USING (model_id)"
            " WHERE origin = 'human labels' GROUP BY role"
        ).fetchall()
    assert dict(counts) == {"teacher": summary["splits"]["train"], "student": summary["splits"]["train"]}


def test_a_gate_set_of_one_group_measures_no_calibration_and_ends_no_round(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    tens = {"group_rule": r"(\d)\d\.png$", "shares": {"train": 0.9, "gate": 0.1}}
    summary = run_retrain(
        checked(RetrainParameters, **{**asked, **tens, "output": str(tmp_path), "steps": 30}), orchestrated=False
    )
    reasons = summary["rounds"][0]["gate"]["reasons"]
    assert any(
        each.startswith("calibration: D-ECE: not measured") and "one group cannot" in each for each in reasons
    ), reasons


def test_labels_that_the_champion_has_learnt_from_never_calibrate_it_later(
    asked: dict[str, Any], round_one: tuple[dict[str, Any], Store, Watched]
) -> None:
    with pytest.raises(UsageError, match="the split leaves nothing for calibration"):
        run_retrain(checked(RetrainParameters, **{**asked, "calibration": "holdout", "seed": 5}), orchestrated=False)


def test_it_is_refused_where_the_teacher_has_seen_every_fold(
    asked: dict[str, Any], round_one: tuple[dict[str, Any], Store, Watched], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="calibrates the first round only"):
        checked(RetrainParameters, **{**asked, "rounds": 2})
    holdout = {**asked, "output": str(tmp_path), "calibration": "holdout", "steps": 1}
    with pytest.raises(ReachedError, match="infer"):
        run_retrain(checked(RetrainParameters, **holdout), orchestrated=False, step=up_to_inference)
    with pytest.raises(UsageError, match="the first model of these labels only"):
        run_retrain(checked(RetrainParameters, **{**holdout, "calibration": "crossfit"}), orchestrated=False)


def test_other_unlabelled_images_are_no_other_labels(asked: dict[str, Any], tmp_path: Path) -> None:
    unlabelled = shutil.copytree(asked["unlabelled"], tmp_path / "unlabelled")
    here = {**asked, "unlabelled": str(unlabelled), "output": str(tmp_path / "loop"), "steps": 1}
    for _ in range(2):
        with pytest.raises(ReachedError, match="infer"):
            run_retrain(checked(RetrainParameters, **here), orchestrated=False, step=up_to_inference)
        next(iter(sorted(unlabelled.iterdir()))).unlink()
