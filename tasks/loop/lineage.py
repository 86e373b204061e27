"""Where a label comes from and what a model was made of, in SQL: views over the loop's tables.

| view | one row per |
|---|---|
| ``pseudo_labels``, ``pseudo_images``, ``rounds``, ``models``, ``calibrators``, ``threshold_sets``, ``audits``,
  ``verdicts``, ``split_items`` | row of that table |
| ``label_lineage`` | pseudo-label: teacher, digest, round, threshold and proof, code version, the student it taught |
| ``model_lineage`` | model: its training set, the round that made it, its teacher, what the gate said |
| ``model_data`` | model and item or label that it was trained on |

The tables are append-only: where a round was recorded twice (stopped and resumed) the later record counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb

from infra.store import ObjectInfo, Store
from tasks.loop.schemas import TABLES
from tasks.output.sql_tables import create_empty_table
from tasks.output.tables import TableSpec, list_tables
from tasks.output.views import MoreViews

TABLE_VIEWS = (
    "pseudo_labels", "pseudo_images", "rounds", "models", "calibrators", "threshold_sets", "audits", "verdicts",
    "split_items",
)  # fmt: skip
DERIVED_VIEWS = ("label_lineage", "model_lineage", "model_data")
LINEAGE_VIEWS = (*TABLE_VIEWS, *DERIVED_VIEWS)

_LATEST = {"rounds": ("run_id, round", "finished_at"), "models": ("model_id", "created_at")}

_LABEL_LINEAGE = """
SELECT l.label_id, l.image_id, l.uri, l.sha256, l.kind, l.label, l.name, l.decision, l.reason, l.score,
       l.score_calibrated, l.quality_calibrated, l.run_id, l.round, l.teacher_model_id, l.teacher_weights_sha256,
       m.weights_uri AS teacher_weights_uri, l.teacher_round, l.teacher_train_set_id, l.t_hi, l.t_lo, l.threshold_basis,
       l.threshold_set_id, t.target_precision, t.lower_bound, t.n_accepted AS n_calibration_accepted,
       t.calibration_split, l.calibrator_id, l.code_commit, l.config_sha256, l.tta_spec, l.weight,
       r.train_set_id, r.candidate_id AS student_id, r.promoted AS student_promoted
FROM pseudo_labels l
LEFT JOIN models m ON m.model_id = l.teacher_model_id
LEFT JOIN (SELECT DISTINCT * FROM threshold_sets) t
       ON t.threshold_set_id = l.threshold_set_id AND t.label = l.label
LEFT JOIN rounds r ON r.run_id = l.run_id AND r.round = l.round AND r.threshold_set_id = l.threshold_set_id
"""

_MODEL_LINEAGE = """
SELECT m.model_id, m.weights_sha256, m.weights_uri, m.role, m.kind, m.run_id, m.round, m.parent_model_id,
       m.train_set_id, m.label_set_id, m.splits_manifest_sha256, m.init_sha256, m.seed, m.code_commit, m.created_at,
       r.threshold_set_id, r.n_human, r.n_pseudo, r.accept_rate, r.verdict_id, r.promoted
FROM models m LEFT JOIN rounds r ON r.candidate_id = m.model_id AND r.train_set_id = m.train_set_id
"""

_MODEL_DATA = """
SELECT m.model_id, 'pseudo-label' AS origin, l.image_id, l.uri, l.sha256, l.label_id, l.name, l.teacher_model_id,
       l.weight
FROM models m
JOIN rounds r ON r.candidate_id = m.model_id AND r.train_set_id = m.train_set_id
JOIN pseudo_labels l ON l.run_id = r.run_id AND l.round = r.round AND l.threshold_set_id = r.threshold_set_id
WHERE l.decision = 'accept'
UNION ALL
SELECT m.model_id, 'human labels', s.image_id, s.uri, s.sha256, NULL, NULL, NULL, 1.0
FROM models m JOIN split_items s ON s.part = left(m.split_items_sha256, 16)
WHERE m.role <> 'fold' AND (s.split = 'train' OR (m.role = 'baseline' AND s.split = 'calibration'))
"""


def create_lineage_views(connection: duckdb.DuckDBPyConnection, paths: Mapping[str, Sequence[str]]) -> None:
    """Make the views, if the output holds any of the loop's tables; an output of plain jobs has none of them.

    Args:
        connection: can read the paths.
        paths: ``<table>.v<version>`` -> its objects, as DuckDB is to open them.
    """
    if not any(paths.values()):
        return
    for name in TABLE_VIEWS:
        connection.execute(f"CREATE VIEW {name} AS {_rows(connection, TABLES[name], paths)}")
    for name, sql in zip(DERIVED_VIEWS, (_LABEL_LINEAGE, _MODEL_LINEAGE, _MODEL_DATA), strict=True):
        connection.execute(f"CREATE VIEW {name} AS {sql}")


def _rows(connection: duckdb.DuckDBPyConnection, spec: TableSpec, paths: Mapping[str, Sequence[str]]) -> str:
    """All rows of a table in its present columns, and of each the first digits of its object's digest."""
    create_empty_table(connection, f"_no_{spec.name}", spec.schema)
    selects = [f"SELECT *, CAST(NULL AS VARCHAR) AS part FROM _no_{spec.name}"]
    for version in (*spec.upgrades, spec.version):
        of_version = paths.get(f"{spec.name}.v{version}", ())
        if of_version:
            files = ", ".join("'" + path.replace("'", "''") + "'" for path in of_version)
            columns = spec.columns_of(version).replace("*", "* EXCLUDE (filename)")
            selects.append(
                f"SELECT {columns}, regexp_extract(filename, 'part-([0-9a-f]+)', 1) AS part FROM read_parquet("
                f"[{files}], hive_partitioning = false, filename = true, union_by_name = {spec.is_open})"
            )
    rows = f"SELECT * FROM ({' UNION ALL BY NAME '.join(selects)})"
    if spec.name in _LATEST:
        keys, moment = _LATEST[spec.name]
        rows += f" QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {moment} DESC, part) = 1"
    return rows


def _objects(store: Store) -> dict[str, list[ObjectInfo]]:
    found: dict[str, list[ObjectInfo]] = {}
    for name, stored in list_tables(store).items():
        if name in TABLE_VIEWS:
            for each in stored:
                found.setdefault(f"{name}.v{each.version}", []).append(each.info)
    return found


VIEWS = MoreViews(LINEAGE_VIEWS, _objects, create_lineage_views)
