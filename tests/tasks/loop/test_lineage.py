"""One query leads from a pseudo-label to its teacher, and from a model to its data."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from infra.errors import DatasetError
from infra.store import Store, open_store
from tasks.loop.calibration import Calibration
from tasks.loop.replay import replay
from tasks.loop.schemas import CALIBRATORS, MODELS, PSEUDO_IMAGES, PSEUDO_LABELS, ROUNDS, THRESHOLD_SETS
from tasks.loop.selection import Selection, select, train_set_id
from tasks.loop.splits import DEFAULT_SHARES, labelled_rows, split_groups, store_manifest
from tasks.output.query import run_query
from tasks.output.tables import append, encode_table, list_tables, read, table_of
from tasks.report.verify import verify
from tests.tasks.loop.rows import candidate, candidates, identity, thresholds
from tests.tasks.loop.scenes import label_set
from tests.tasks.output.fake_output import FakeOutput, Item

NOW = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)


def quality() -> Calibration:
    return Calibration({}, replace(identity().pooled, feature="quality", knots_y=(0.2, 1.0)))


def a_round(store: Store, **changes: Any) -> Selection:
    """Everything that one round leaves behind."""
    labels = label_set([(f"g{k}", 1, [1]) for k in range(12)])
    items = labelled_rows(labels, split_groups(labels, DEFAULT_SHARES, salt="s"), None)
    manifest = store_manifest(
        store, items, label_set_id=labels.label_set_id, class_map_sha256="c", salt="s", shares=DEFAULT_SHARES
    )
    rows = [candidate(f"u{k}", 0, 0.5 + k / 20, [0, 0, 20, 20]) for k in range(8)]
    listed = [{"image_id": f"u{k}", "uri": f"u{k}", "group_id": f"u{k}", "status": "ok"} for k in range(8)]
    sets = thresholds({1: 0.7})
    found = select(candidates(rows), listed, thresholds=sets, scores=identity(), quality=quality())
    append(store, PSEUDO_LABELS, found.labels, round_number=1, kind="instance")
    append(store, PSEUDO_IMAGES, found.images, round_number=1, kind="instance")
    append(store, THRESHOLD_SETS, sets.to_table())
    append(store, CALIBRATORS, identity().to_table("teacher@1"))
    append(store, CALIBRATORS, quality().to_table("teacher@1"))
    name = train_set_id(found, label_set_id=labels.label_set_id, splits_manifest_sha256=manifest.manifest_sha256)
    shared = {"weights_uri": "s3://w/x", "kind": "instance", "seed": 1, "code_commit": "c0ffee", "created_at": NOW,
              "class_map_sha256": "c", "splits_manifest_sha256": manifest.manifest_sha256, "run_id": "run-1",
              "split_items_sha256": manifest.items_sha256, "label_set_id": labels.label_set_id}  # fmt: skip
    models = [
        {**shared, "model_id": "teacher@1", "weights_sha256": "aa" * 32, "role": "teacher", "round": 0},
        {**shared, "model_id": "student@2", "weights_sha256": "bb" * 32, "role": "student", "round": 1,
         "parent_model_id": "teacher@1", "train_set_id": name},
        {**shared, "model_id": "baseline@3", "weights_sha256": "ee" * 32, "role": "baseline", "round": 0},
    ]  # fmt: skip
    append(store, MODELS, table_of(MODELS, models))
    record = {
        "run_id": "run-1", "round": 1, "kind": "instance", "candidate_id": "student@2",
        "splits_manifest_sha256": manifest.manifest_sha256,
        "leakage_report": "{}", "train_set_id": name, "threshold_set_id": sets.threshold_set_id, "n_human": 6,
        "n_pseudo": found.accepted.num_rows, "accept_rate": 0.5, "training": "{}", "augmentation": "{}", "seeds": [1],
        "environment": "{}", "metrics_gate": "{}", "promoted": False, "looks_used": 1, "alpha_spent": 0.016,
        "finished_at": NOW, "code_commit": "c0ffee", **changes,
    }  # fmt: skip
    append(store, ROUNDS, table_of(ROUNDS, [record]))
    return found


def test_from_a_pseudo_label_to_teacher_digest_round_threshold_and_code(store_uri: str) -> None:
    found = a_round(open_store(store_uri))
    label_id = found.accepted["label_id"][0].as_py()
    sql = f"""SELECT teacher_model_id, teacher_weights_sha256, teacher_weights_uri, round, t_hi, target_precision,
                     reason, code_commit, student_id FROM label_lineage WHERE label_id = '{label_id}'"""
    (row,) = run_query(store_uri, sql).to_pylist()
    assert row == {
        "teacher_model_id": "teacher@1", "teacher_weights_sha256": "aa" * 32, "teacher_weights_uri": "s3://w/x",
        "round": 1, "t_hi": 0.7, "target_precision": 0.9, "reason": "certified", "code_commit": "c0ffee",
        "student_id": "student@2",
    }  # fmt: skip


def test_from_a_model_to_its_data(store_uri: str) -> None:
    found = a_round(open_store(store_uri))
    rows = run_query(store_uri, "SELECT model_id, origin, count(*) AS n FROM model_data GROUP BY ALL").to_pylist()
    counts = {(row["model_id"], row["origin"]): row["n"] for row in rows}
    assert counts == {
        ("student@2", "pseudo-label"): found.accepted.num_rows,
        ("student@2", "human labels"): 6,
        ("teacher@1", "human labels"): 6,
        ("baseline@3", "human labels"): 8,  # calibration included: it may train on every label the loop used
    }
    (student,) = run_query(store_uri, "FROM model_lineage WHERE model_id = 'student@2'").to_pylist()
    assert (student["parent_model_id"], student["n_pseudo"]) == ("teacher@1", found.accepted.num_rows)


def test_a_round_that_was_recorded_twice_counts_once_and_the_later_record_tells(store_uri: str) -> None:
    store = open_store(store_uri)
    found = a_round(store)
    a_round(store, promoted=True, finished_at=NOW + dt.timedelta(hours=1))  # stopped before, resumed, recorded again
    (row,) = run_query(store_uri, "SELECT count(*) AS n, bool_and(promoted) AS yes FROM rounds").to_pylist()
    assert row == {"n": 1, "yes": True}
    (row,) = run_query(store_uri, "SELECT count(*) AS n FROM label_lineage").to_pylist()
    assert row["n"] == found.labels.num_rows


def test_every_accepted_row_leads_to_its_teacher(store_uri: str) -> None:
    a_round(open_store(store_uri))
    sql = "SELECT count(*) AS n FROM label_lineage WHERE decision = 'accept' AND teacher_weights_uri IS NULL"
    assert run_query(store_uri, sql).to_pylist() == [{"n": 0}]


def test_a_recorded_round_is_replayed_from_its_rows_alone_and_a_changed_row_shows(store_uri: str) -> None:
    store = open_store(store_uri)
    found = a_round(store)
    label_set_id = read(store, MODELS)["label_set_id"][0].as_py()
    again = replay(store, "run-1", 1, label_set_id=label_set_id)
    assert again.same and again.selection.images.equals(found.images)
    assert not replay(store, "run-1", 1, label_set_id="another").same
    with pytest.raises(DatasetError, match="not recorded"):
        replay(store, "run-1", 2, label_set_id=label_set_id)
    assert (verify(store_uri).num_rounds, verify(store_uri).problems) == (1, ())
    (key,) = [stored.info.key for stored in list_tables(store)["pseudo_labels"]]
    changed = found.labels.to_pylist()
    changed[0]["decision"] = "accept"
    store.put(key, encode_table(PSEUDO_LABELS, pa.Table.from_pylist(changed, schema=found.labels.schema)))
    assert not replay(store, "run-1", 1, label_set_id=label_set_id).same
    [problem] = verify(store_uri).problems
    assert "round 1 of run-1: decided again from its rows" in problem


def test_an_output_of_a_plain_job_has_no_such_views_and_a_mixed_one_has_both(tmp_path: Any) -> None:
    output = FakeOutput(open_store(str(tmp_path / "out")))
    output.commit([Item("s3://p/a.jpg")])
    with pytest.raises(Exception, match="pseudo_labels"):
        run_query(str(tmp_path / "out"), "FROM pseudo_labels")
    a_round(output.store)
    both = "SELECT (SELECT count(*) FROM instances) AS i, (SELECT count(*) FROM pseudo_labels) AS p"
    assert run_query(str(tmp_path / "out"), both).to_pylist() == [{"i": 3, "p": 8}]
