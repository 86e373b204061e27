"""The report of a loop: a page for each round and a list of them; nothing is loaded from anywhere.

report/index.html                       the rounds, the newest first
report/rounds/<run id>-<round>.html     one round
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from infra.store import Store, open_store
from tasks.evaluation.figures import in_words, main_figure
from tasks.loop.champion import list_candidates, read_pointer
from tasks.loop.disagreements import disagreements_key
from tasks.loop.heartbeats import PSEUDO, SUPERVISED
from tasks.loop.kinds import loop_kind
from tasks.output import tables
from tasks.output.layout import REPORT_KEY
from tasks.output.views import views_of
from tasks.report import charts
from tasks.report.page import page_template
from tasks.report.report import ReportPaths
from tasks.report.report_samples import Gallery
from tasks.report.round_data import DECISIONS, RoundFacts, Row, collect_round, list_rounds
from tasks.report.round_samples import choose_and_draw, draw_disagreements
from tasks.training.layout import RUNS_FOLDER, curves_key

_PACKAGE = "tasks.report"
_CURVE_COLOURS = {SUPERVISED: "var(--accent)", PSEUDO: "var(--good)"}
_DECISION_KINDS = {"accept": "ok", "ignore": "quarantined", "reject": "failed"}


def has_rounds(output: str) -> bool:
    """Whether an output is one of a loop that has come to the end of a round."""
    return bool(tables.list_tables(open_store(output)).get("rounds"))


def write_loop_report(
    output: str, *, samples: int = 24, budget_s: float = 60.0, last_only: bool = False
) -> ReportPaths:
    """Write (or rewrite) the pages of a loop into its output.

    Args:
        output: folder or ``s3://bucket/prefix`` of the loop.
        samples: pictures a round, about; 0 for none.
        budget_s: seconds of a round after which no further picture is loaded.
        last_only: write the page of the newest round only, and the list.

    Raises:
        StoreError: when the tables cannot be read or a page cannot be written.
    """
    store = open_store(output)
    views = views_of(store)
    try:
        rounds, states = list_rounds(views), _states(store)
        for record in rounds[:1] if last_only else rounds:
            facts = collect_round(views, record)
            decided = choose_and_draw(views, record, samples, budget_s=budget_s)
            differing = draw_disagreements(views, record, samples // 3, budget_s=budget_s)
            page = render_round(facts, _state(record, states), decided, differing, _files(store, record))
            store.put(round_key(record), page.encode())
        store.put(REPORT_KEY, render_index(store, rounds, states).encode())
    finally:
        views.connection.close()
    return ReportPaths(store.uri_of(REPORT_KEY))


def round_key(record: Row) -> str:
    """The page of a round, by its row of ``rounds.v2``."""
    return f"report/{_round_page(record)}"


def _round_page(record: Row) -> str:
    return f"rounds/{record['run_id']}-{record['round']:04d}.html"


def _files(store: Store, record: Row) -> list[tuple[str, str]]:
    """(address from the page of the round, URI) of the exported disagreements."""
    folder = disagreements_key(record["run_id"], record["round"], "")
    return [(f"../../{info.key}", store.uri_of(info.key)) for info in store.list(folder)]


def render_index(store: Store, rounds: Sequence[Row], states: Mapping[str, str]) -> str:
    """The list of rounds as a page."""
    pointer = read_pointer(store)[0]
    return page_template(_PACKAGE, "loop_report.html.j2").render(
        output=store.uri,
        short_output=_short(store.uri),
        rounds=[_line(record, _state(record, states)) for record in rounds],
        champion=pointer.champion,
        moves=list(reversed(pointer.moves)),
        n=charts.number,
        quoted_output=shlex.quote(store.uri),
        written_at=_now(),
    )


def _state(record: Row, states: Mapping[str, str]) -> str:
    if record["candidate_id"] is None:
        return "ended"  # before a student was trained
    return states.get(record["verdict_id"], "promoted" if record["promoted"] else "refused")


def _line(record: Row, state: str) -> dict[str, Any]:
    return {
        "page": _round_page(record),
        "record": record,
        "state": state,
        "unit": loop_kind(record["kind"]).pieces,
        "candidate": _main_value(record["metrics_gate"]),
        "baseline": _main_value(record["metrics_baseline"]),
    }


def _main_value(metrics: str | None) -> float | None:
    found = main_figure(json.loads(metrics or "{}"))
    return None if found is None else found[1]


def _states(store: Store) -> dict[str, str]:
    """What has become of each candidate by now, by the id of its verdict."""
    return {record.verdict_id: state for record, state in list_candidates(store)}


def render_round(
    facts: RoundFacts,
    state: str,
    galleries: tuple[Gallery, ...],
    differing: tuple[Gallery, ...],
    files: Sequence[tuple[str, str]],
) -> str:
    """The page of a round. Everything that comes from data is escaped by the template engine."""
    figure = facts.main_figure
    main: dict[str, float | None] = dict.fromkeys(("candidate", "champion", "baseline"))
    main |= {role: found.get(figure) for role, found in facts.metrics.items()}
    gain = next(
        (each["value"] for each in facts.criteria if each["criterion"] == "better: gain over the champion"), None
    )
    if gain is not None and main.get("candidate") is not None:
        main["champion"] = main["candidate"] - gain
    return page_template(_PACKAGE, "round_report.html.j2").render(
        facts=facts,
        round=facts.round,
        state=state,
        short_output=_short(facts.output),
        main=main,
        metric=in_words(figure, facts.kind.name),
        in_words=functools.partial(in_words, kind=facts.kind.name),
        galleries=galleries,
        differing=differing,
        files=files,
        n=charts.number,
        charts=_charts(facts),
        decisions=DECISIONS,
        training=_training(facts),
        curves={role: _curves_page(facts.output, row["weights_uri"]) for role, row in facts.models.items()},
        quoted_output=shlex.quote(facts.output),
        written_at=_now(),
    )


def _curves_page(output: str, weights_uri: str) -> str | None:
    """Address from the page of a round of the curves of a model that was trained in the same output."""
    folder, _, _ = weights_uri.rpartition("/")
    runs = f"{output.rstrip('/')}/{RUNS_FOLDER}"
    return f"../../{curves_key(folder.removeprefix(runs))}" if folder.startswith(runs) else None


def _charts(facts: RoundFacts) -> dict[str, Any]:
    decided = facts.decided
    return {
        "decided": charts.stacked_bar(
            "Candidates by decision", [(name, decided[name], _DECISION_KINDS[name]) for name in DECISIONS]
        ),
        "by_class": [
            (
                each,
                charts.stacked_bar(
                    f"Candidates of {each.name}",
                    [(name, each.decided.get(name, 0), _DECISION_KINDS[name]) for name in DECISIONS],
                ),
            )
            for each in facts.classes
        ],
        "accepted": charts.horizontal_bars(
            f"Accepted {facts.loop.unit} by class",
            [(each.name, each.decided.get("accept", 0)) for each in facts.classes],
        ),
        "curves": [
            (
                curve,
                charts.lines(
                    f"Loss of the {curve.role}",
                    [(kind, _CURVE_COLOURS[kind], points) for kind, points in sorted(curve.losses.items())],
                ),
            )
            for curve in facts.curves
            if curve.losses
        ],
    }


def _training(facts: RoundFacts) -> list[tuple[str, str]]:
    """How the student was trained, as rows of a table."""
    record = facts.round
    found = json.loads(record["training"])
    loop = found.get("loop", {})
    rows = {
        "steps": loop.get("steps"),
        "labelled images a step": found.get("batch_size"),
        "labelled share": found.get("labelled_share"),
        "learning rate": loop.get("learning_rate"),
        "seed": ", ".join(map(str, record["seeds"])),
        "human labels": record["n_human"],
        f"accepted {facts.loop.pieces}": record["n_pseudo"],
    }
    return [(name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in rows.items() if value]


def _short(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1] or uri


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M")
