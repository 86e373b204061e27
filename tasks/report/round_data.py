"""What a round's report says, asked of the loop's tables: bounded answers, whatever the size of the round."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from infra.errors import VisionmillError
from infra.store import Store, open_store, split_uri
from tasks.evaluation.figures import groups_of, main_figure
from tasks.loop.apart import Apart, distances
from tasks.loop.gate import LOOKED_AT
from tasks.loop.heartbeats import losses_by_kind
from tasks.loop.kinds import loop_kind
from tasks.loop.schemas import AUDITS, MODELS, SPLIT_ITEMS, THRESHOLD_SETS, VERDICTS
from tasks.loop.splits import read_manifest
from tasks.output import tables
from tasks.output.tables import TableSpec
from tasks.output.views import Views
from tasks.product import Kind, LoopKind, find_kind

DECISIONS = ("accept", "ignore", "reject")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ClassFacts:
    """One class of a round.

    Args:
        name: of the class.
        decided: candidates by decision, in the unit of their kind.
        threshold: row of ``threshold_sets.v2``; empty if there is none.
        looked_at, errors: accepted labels that were checked against people or hidden truth, and how many were wrong.
        audit_bound: lower bound of the precision that the check allows; None if nobody looked.
    """

    name: str
    decided: dict[str, int]
    threshold: Row = field(default_factory=dict)
    looked_at: int = 0
    errors: int = 0
    audit_bound: float | None = None

    @property
    def reached(self) -> float | None:
        """Share of the checked labels that were right."""
        return 1 - self.errors / self.looked_at if self.looked_at else None


@dataclass(frozen=True, slots=True)
class Curve:
    """How a model of the round was trained: (step, loss) by kind of labels."""

    role: str
    model_id: str
    losses: dict[str, list[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """All that the page says, pictures apart.

    Args:
        output: the loop's output.
        round: row of ``rounds.v2``.
        criteria: rows of ``verdicts.v1`` in the order in which they were asked.
        classes: most candidates first.
        audit: row of ``audits.v2`` for all classes together; None if nobody looked.
        reasons: (decision, reason, how many candidates in their unit), most first.
        images: unlabelled items by status.
        splits: items by split.
        leakage: what the firewall kept out of the unlabelled items, by "reason vs split".
        apart: how far every two splits of the labels are apart.
        curves: of the models by role, as far as their records are at hand.
        models: rows of ``models.v2`` by role.
        views: what teachers looked at beside the plain view.
        teaching: (what accepted candidates teach beside their class, how many do).
    """

    output: str
    round: Row
    criteria: tuple[Row, ...]
    classes: tuple[ClassFacts, ...]
    audit: Row | None
    reasons: tuple[tuple[str, str, int], ...]
    images: dict[str, int]
    splits: dict[str, int]
    leakage: dict[str, int]
    curves: tuple[Curve, ...]
    models: dict[str, Row]
    views: tuple[str, ...] = ()
    teaching: tuple[tuple[str, int], ...] = ()
    apart: tuple[Apart, ...] = ()

    @property
    def kind(self) -> Kind:
        """What the models of the round do."""
        return find_kind(self.round["kind"])

    @property
    def loop(self) -> LoopKind:
        """What the kind brings to the loop."""
        return loop_kind(self.round["kind"])

    @property
    def decided(self) -> dict[str, int]:
        """Candidates by decision, all classes together."""
        return {name: sum(each.decided.get(name, 0) for each in self.classes) for name in DECISIONS}

    @property
    def unaudited(self) -> str:
        """Why nothing is known of the precision that was reached, where no label was judged."""
        if self.round["candidate_id"] is None:
            return "Nothing was accepted, so there was nothing to look at."
        asked = next((each for each in self.criteria if each["criterion"] == LOOKED_AT), None)
        if asked is not None and asked["value"] is not None:
            return "People's labels were given to check by, but none of them is of an item with accepted labels."
        return "Nobody has looked at this round's labels, so nothing is known about it."

    @property
    def metrics(self) -> dict[str, Mapping[str, Any]]:
        """Figures on the gate set by role, of the group that the gate asks for."""
        found = {"candidate": self.round["metrics_gate"], "baseline": self.round["metrics_baseline"]}
        return {role: _main_group(json.loads(text)) for role, text in found.items() if text}

    @property
    def main_figure(self) -> str:
        """The name of the figure that the gate compares."""
        found = main_figure(json.loads(self.round["metrics_gate"] or "{}"))
        return "figure" if found is None else found[0]


def _main_group(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(iter(groups_of(metrics).values()), {})


def list_rounds(views: Views) -> list[Row]:
    """Rows of ``rounds.v2``, the newest first; [] where no loop ever was."""
    if not tables.list_tables(views.listing.store).get("rounds"):
        return []
    return _rows(views, "SELECT * FROM rounds ORDER BY finished_at DESC, run_id, round DESC")


def collect_round(views: Views, record: Row) -> RoundFacts:
    """Everything about one round, by its row of ``rounds.v2``."""
    store = views.listing.store
    mine = [record["run_id"], record["round"], record["threshold_set_id"]]
    kind = loop_kind(record["kind"])
    amount = "count(*)" if kind.amount is None else f"CAST(sum({kind.amount}) AS BIGINT)"
    counts = _rows(
        views,
        f"SELECT name, decision, reason, {amount} AS n, any_value(tta_spec) AS tta_spec FROM pseudo_labels"
        " WHERE run_id = ? AND round = ? AND threshold_set_id = ? GROUP BY name, decision, reason",
        mine,
    )
    audits = _where(store, AUDITS, train_set_id=record["train_set_id"], run_id=record["run_id"])
    models = _models(store, record)
    manifest = read_manifest(store, record["splits_manifest_sha256"])
    return RoundFacts(
        output=store.uri,
        round=record,
        criteria=tuple(_once_each(_where(store, VERDICTS, verdict_id=record["verdict_id"]), "criterion")),
        classes=_classes(counts, _where(store, THRESHOLD_SETS, threshold_set_id=record["threshold_set_id"]), audits),
        audit=max((row for row in audits if row["name"] is None), key=lambda row: row["n"], default=None),
        reasons=_reasons(counts),
        images=_images(views, record),
        splits={} if manifest is None else manifest.counts,
        leakage={} if manifest is None else manifest.leakage,
        curves=tuple(
            Curve(role, row["model_id"], losses_by_kind(_history(row["weights_uri"]))) for role, row in models.items()
        ),
        models=models,
        views=tuple(json.loads(counts[0]["tta_spec"])) if counts else (),
        teaching=_teaching(views, mine, kind),
        apart=() if manifest is None else tuple(distances(tables.read(store, SPLIT_ITEMS, [manifest.items_sha256]))),
    )


def _teaching(views: Views, mine: Sequence[Any], kind: LoopKind) -> tuple[tuple[str, int], ...]:
    """How many candidates teach what the rule decides apart from their class."""
    parts = [each for each in kind.decided if pa.types.is_boolean(each.type)]
    if not parts:
        return ()
    counts = ", ".join(f"count(*) FILTER ({each.name}) AS {each.name}" for each in parts)
    sql = f"SELECT {counts} FROM pseudo_labels WHERE run_id = ? AND round = ? AND threshold_set_id = ?"
    [found] = _rows(views, sql, mine)
    return tuple(((each.metadata or {})[b"meaning"].decode(), found[each.name]) for each in parts)


def _rows(views: Views, sql: str, values: Sequence[Any] = ()) -> list[Row]:
    return views.connection.sql(sql, params=list(values)).to_arrow_table().to_pylist()


def _where(store: Store, spec: TableSpec, **wanted: Any) -> list[Row]:
    """Rows of one of the small tables."""
    rows = tables.read(store, spec).to_pylist()
    return [row for row in rows if all(row[column] == value for column, value in wanted.items())]


def _once_each(rows: Sequence[Row], key: str) -> list[Row]:
    """One row of each key, in order; a verdict that was recorded twice says the same."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row[key], row)
    return list(found.values())


def _classes(counts: Sequence[Row], thresholds: Sequence[Row], audits: Sequence[Row]) -> tuple[ClassFacts, ...]:
    decided: dict[str, dict[str, int]] = {row["name"]: {} for row in thresholds}
    for row in counts:
        of_class = decided.setdefault(row["name"], {})
        of_class[row["decision"]] = of_class.get(row["decision"], 0) + row["n"]
    promise = {row["name"]: row for row in thresholds}
    looked = {row["name"]: row for row in sorted(audits, key=lambda row: row["n"])}  # the largest check counts
    facts = []
    for name, numbers in decided.items():
        audit = looked.get(name, {})
        facts.append(
            ClassFacts(
                name=name,
                decided=numbers,
                threshold=promise.get(name, {}),
                looked_at=audit.get("n", 0),
                errors=audit.get("n_errors", 0),
                audit_bound=audit.get("lower_bound") if audit.get("n") else None,
            )
        )
    return tuple(sorted(facts, key=lambda each: (-sum(each.decided.values()), each.name)))


def _reasons(counts: Sequence[Row]) -> tuple[tuple[str, str, int], ...]:
    found: dict[tuple[str, str], int] = {}
    for row in counts:
        key = row["decision"], row["reason"]
        found[key] = found.get(key, 0) + row["n"]
    return tuple((*key, n) for key, n in sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def _images(views: Views, record: Row) -> dict[str, int]:
    rows = _rows(
        views,
        "SELECT status, count(DISTINCT image_id) AS n FROM pseudo_images WHERE run_id = ? AND round = ?"
        " GROUP BY status ORDER BY n DESC",
        [record["run_id"], record["round"]],
    )
    return {row["status"]: row["n"] for row in rows}


def _models(store: Store, record: Row) -> dict[str, Row]:
    """Champion, student and baseline of the round; the baseline is the newest of its loop."""
    known = sorted(tables.read(store, MODELS).to_pylist(), key=lambda row: row["created_at"])
    by_id = {row["model_id"]: row for row in known}
    baselines = [row for row in known if row["role"] == "baseline" and row["run_id"] == record["run_id"]]
    found = {
        "champion": by_id.get(record["champion_in"]),
        "candidate": by_id.get(record["candidate_id"]),
        "baseline": baselines[-1] if baselines else None,
    }
    return {role: row for role, row in found.items() if row is not None}


def _history(weights_uri: str) -> list[dict[str, float]]:
    """The curve in the record beside the weights; weights that were moved away have none."""
    root, key = split_uri(weights_uri.removesuffix(".safetensors") + ".json")
    try:
        record = json.loads(open_store(root).get(key))
    except VisionmillError:
        return []
    return list(record.get("lineage", {}).get("history", []))
