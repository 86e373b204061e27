"""Looks at held-out labels on the way: figures by class, the best weights kept, an early end, and exact resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from infra.store import Store, open_store
from modelkit import ClassInfo
from modelkit.training.processes import Rank
from tasks.evaluation import evaluate
from tasks.labels.label_sets import LabelledItem, LabelledObject, make_label_set
from tasks.labels.stored import write_stored
from tasks.training import validation
from tasks.training.examples import Example, save_training_set
from tasks.training.job import TrainingJob, prepare_training
from tasks.training.layout import validation_key
from tasks.training.recipe import TrainingRecipe
from tasks.training.run import train_here
from tasks.training.work import train_share
from tests.tasks.training.scenes import CLASSES, put_examples, semantic_recipe


def put_validation(store: Store, examples: list[Example]) -> str:
    items = [
        LabelledItem(each.uri, each.size_hw, tuple(LabelledObject(one.label, one.rle) for one in each.objects))
        for each in examples
    ]
    labels = make_label_set(items, [ClassInfo(*each) for each in CLASSES], origin_format="test")
    key = validation_key(labels.label_set_id)
    write_stored(labels, store, key)
    return key


def job_in(folder: Path, **changes: Any) -> TrainingJob:
    store = open_store(str(folder))
    labelled = save_training_set(store, put_examples(store, 4))
    plan: TrainingRecipe = dataclasses.replace(semantic_recipe(), validate_every=2, **changes)
    held_out = put_validation(store, put_examples(store, 2, first=30))
    return prepare_training(str(folder), plan, labelled, validation_set=held_out)


def test_every_look_is_recorded_by_class_and_the_weights_are_those_of_the_best(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    uri, record = train_here(job)
    seen = record.lineage["validation"]
    assert (seen["images"], seen["every"]) == (2, 2)
    assert [look["step"] for look in seen["looks"]] == [2, 4, 6, 8]
    assert all(look["by_class"] for look in seen["looks"])
    best = max(seen["looks"], key=lambda look: (look["main"], -look["step"]))
    assert seen["best"] == best["step"]
    judged = evaluate.evaluate_model(uri, validation.read_stored(open_store(str(tmp_path)).uri_of(job.validation_set)))  # type: ignore[arg-type]
    assert judged.main_figure == pytest.approx(best["main"], abs=1e-6)
    keys = {info.key.rpartition("/")[2] for info in open_store(str(tmp_path)).list(f"training/runs/{job.fingerprint}/")}
    assert keys == {"run.json", "tiny.safetensors", "tiny.json"}


def test_a_stopped_run_looks_again_at_the_same_steps_and_leaves_the_same_bits(tmp_path: Path) -> None:
    uris = []
    for name, stops in (("whole", ()), ("stopped", (3, 6))):
        job = job_in(tmp_path / name, name="same")
        for stop in stops:
            train_share(job, Rank(), until=stop)
        uris.append(train_here(job))
    (whole, first), (stopped, second) = uris
    assert [look["step"] for look in second.lineage["validation"]["looks"]] == [2, 4, 6, 8]
    assert first.lineage["validation"]["looks"] == second.lineage["validation"]["looks"]
    expected, found = (load(open_store(uri.rpartition("/")[0]).get(uri.rpartition("/")[2])) for uri in (whole, stopped))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_that_learns_nothing_more_ends_when_its_patience_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_in(tmp_path, patience=2)
    figures = iter([0.3, 0.5, 0.4, 0.2, 0.9])
    real = validation.evaluate_predictor

    def judged(predictor: Any, labels: Any) -> Any:
        found = real(predictor, labels)
        group, values = next(iter(found.figures.items()))
        return dataclasses.replace(found, figures={group: {**values, next(iter(values)): next(figures)}})

    monkeypatch.setattr(validation, "evaluate_predictor", judged)
    _, record = train_here(job)
    assert record.lineage["steps"] == 8 and record.lineage["validation"]["best"] == 4
    assert [look["main"] for look in record.lineage["validation"]["looks"]] == [0.3, 0.5, 0.4, 0.2]
    shorter = job_in(tmp_path / "shorter", patience=1)
    figures = iter([0.3, 0.2, 0.9])
    _, record = train_here(shorter)
    assert record.lineage["steps"] == 4 and record.lineage["validation"]["best"] == 2


def test_a_validation_set_changes_the_name_of_a_run_and_without_one_names_stay(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    labelled = save_training_set(store, put_examples(store, 4))
    plain = prepare_training(str(tmp_path), semantic_recipe(), labelled)
    assert plain.recipe.fingerprint(labelled, None, 1) == plain.fingerprint
    assert job_in(tmp_path).fingerprint != plain.fingerprint
