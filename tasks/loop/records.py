"""What the loop remembers about models and rounds, as rows of its append-only tables."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from typing import Any

import pyarrow as pa

from infra.store import Store
from modelkit import Weights
from tasks.engine.prepare import environment
from tasks.labels.label_sets import class_map_sha256
from tasks.loop.candidates import Teacher
from tasks.loop.data import LoopData
from tasks.loop.schemas import MODELS, SPLIT_ITEMS
from tasks.output import tables
from tasks.output.layout import canonical_json
from tasks.training.job import TrainingJob
from tasks.training.recipe import TrainingRecipe


def code_version() -> str:
    """Version of this package."""
    return str(environment()["packages"]["visionmill"])


def teacher_of(
    record: Weights, data: LoopData, *, round_number: int, tta_spec: str, train_set_id: str | None = None
) -> Teacher:
    """The lineage columns of everything that a model predicts.

    Args:
        record: of the model.
        data: of the loop.
        round_number: that made the model.
        tta_spec: the views that it looked at beside the plain one, JSON.
        train_set_id: that it was trained on, for a student.
    """
    return Teacher(
        teacher_model_id=record.reference,
        teacher_weights_sha256=record.digest,
        teacher_round=round_number,
        teacher_train_set_id=train_set_id,
        class_map_sha256=class_map_sha256(data.labels.classes),
        code_commit=code_version(),
        config_sha256=_digest(record.config),
        preproc_sha256=_digest(record.preprocessing),
        tta_spec=tta_spec,
    )


def train_set_of(store: Store, model_id: str) -> str | None:
    """The training set of a student of this output; None of a model without pseudo-labels."""
    rows = tables.read(store, MODELS).select(["model_id", "train_set_id"]).to_pylist()
    return next((row["train_set_id"] for row in rows if row["model_id"] == model_id), None)


def last_division(store: Store) -> pa.Table | None:
    """``split_items.v2`` of the newest model's loop: a later loop of this output keeps what it decided.

    The champion has learnt from the training split of that time; were it divided anew, some of it would judge it.

    Returns:
        None where no loop has left a model.
    """
    rows = [row for row in tables.read(store, MODELS).to_pylist() if row["split_items_sha256"] is not None]
    if not rows:
        return None
    newest = max(rows, key=lambda row: (row["created_at"], row["model_id"]))
    return tables.read(store, SPLIT_ITEMS, [newest["split_items_sha256"]])


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def remember_model(
    store: Store,
    job: TrainingJob,
    weights_uri: str,
    record: Weights,
    data: LoopData,
    *,
    role: str,
    run_id: str,
    round_number: int,
    parent: str | None = None,
    train_set_id: str | None = None,
) -> None:
    """One row of ``models.v2``; the same training leaves the same row."""
    row = {
        "model_id": record.reference,
        "weights_sha256": record.digest,
        "weights_uri": weights_uri,
        "role": role,
        "kind": record.kind,
        "run_id": run_id,
        "round": round_number,
        "parent_model_id": parent,
        "train_set_id": train_set_id,
        "label_set_id": data.labels.label_set_id,
        "splits_manifest_sha256": data.manifest.manifest_sha256,
        "split_items_sha256": data.manifest.items_sha256,
        "class_map_sha256": class_map_sha256(data.labels.classes),
        "init_sha256": job.recipe.initial_digest,
        "seed": job.recipe.loop.seed,
        "code_commit": code_version(),
        "created_at": dt.datetime.fromisoformat(record.created),
    }
    tables.append(store, MODELS, tables.table_of(MODELS, [row]))


def training_columns(trained: TrainingRecipe, num_workers: int) -> dict[str, Any]:
    """The columns of ``rounds.v2`` that say how the student was trained."""
    recipe = trained.to_json()
    keys = ("loop", "batch_size", "labelled_share", "schedule", "repeat_threshold", "frozen", "rate_scales")
    return {
        "student_init_sha256": trained.initial_digest,
        "training": json.dumps({key: recipe[key] for key in keys} | {"num_workers": num_workers}),
        "augmentation": json.dumps({key: recipe[key] for key in ("labelled", "unlabelled")}),
        "seeds": [trained.loop.seed],
        "environment": json.dumps(environment()),
        "code_commit": code_version(),
    }
