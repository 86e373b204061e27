"""What Prefect's page shows of a run: what it does, how far it is, what came of it, and where to look further."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, State
from prefect.utilities.urls import url_for
from rich.console import Console

from flows.progress import progress_recorded, progress_shown
from flows.summary import Summary, words_of_job
from infra.errors import VisionmillError
from infra.redaction import redact
from infra.store import is_local, open_store
from tasks.output.query import answer
from tasks.output.views import views_of
from tasks.parameters import MIN_SCORE
from tasks.product import Product

MAX_ROWS = 200  # of a table on the page

_FAILURES = """
SELECT stage, error_type, count(*) AS items, any_value(uri) AS example, any_value(error) AS error
FROM failures GROUP BY ALL ORDER BY items DESC, stage, error_type
"""

logger = logging.getLogger(__name__)


def called(name_of: Callable[[Any], str]) -> Callable[[], str]:
    """What a run is called from Prefect's first line about it: ``flow(flow_run_name=called(...))``.

    Args:
        name_of: of the flow's ``parameters``, what it does to what: "segment photos".
    """

    def name() -> str:
        context = FlowRunContext.get()
        return redact(name_of(context.parameters["parameters"])) if context and context.parameters else ""

    return name


@contextmanager
def run_shown(tags: Iterable[str]) -> Iterator[None]:
    """Around the body of a flow: tags, progress from the first second, and in the log how its page is opened.

    Args:
        tags: to filter by, beside those that the run has already.
    """
    with _at_most_a_note():
        every = sorted({*flow_run.tags, *map(redact, tags)})
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(flow_run.get_id()), tags=every)
        address = url_for("flow-run", obj_id=flow_run.get_id()) or ""
        logger_of_run().info("to look at it, logged in: visionmill ui %s", address)
    with progress_shown(Console(stderr=True)), progress_recorded():
        yield


def log(text: str, *values: object) -> None:
    """A line of the run's log; outside of a flow nobody hears it."""
    if FlowRunContext.get() is not None:
        get_run_logger().info(text, *values)


def logger_of_run() -> Any:
    """The run's own logger, whose lines Prefect keeps."""
    return get_run_logger()


def completed(message: str, summary: Summary) -> State[Summary]:
    """The last state of a run: what it did in one line. A run that was stopped is called so."""
    stopped = summary.get("exit_code", 0) != 0
    return Completed(message=redact(message), data=summary, name="Stopped" if stopped else "Completed")


def short(uri: str) -> str:
    """The last two parts of an address, which say most: ``s3://bucket/in/photos/`` -> ``in/photos``."""
    return "/".join(uri.rstrip("/").split("/")[-2:]).lstrip("/") or uri


def show_job(product: Product, summary: Summary) -> None:
    """Artifacts of a job: where its results and report are, the answer to the product's query, failures by kind."""
    output = summary["output"]
    with _at_most_a_note():
        create_markdown_artifact(key="results", markdown=redact(_markdown(product, summary)), description="The run")
        _link("report", summary.get("report"), "Numbers and pictures")
        views = views_of(open_store(output), product=product.name, min_score=MIN_SCORE)
        try:
            _table("found", answer(views, product.query).to_pylist(), f"In {output}, scores from {MIN_SCORE}")
            _table("failures", answer(views, _FAILURES).to_pylist(), f"In {output}, without a result")
        finally:
            views.connection.close()


def show_training(summary: Mapping[str, Any]) -> None:
    """Artifacts of a training: its weights, the curve, and how good they are."""
    with _at_most_a_note():
        _link("weights", summary["weights"], f"{summary['model']} after {summary['steps']} steps")
        _link("curves", summary["curves"], "Losses, rate and held-out figures over steps")
        _table("curve", summary.get("history") or [], "Losses by step")
        looks = (summary.get("validation") or {}).get("looks") or []
        rows = [{"step": look["step"], "main": look["main"], **look["by_class"]} for look in looks]
        _table("held-out", rows, "Figures on the labels that are held out, by step: the main one, and by class")
        groups = {} if summary["metrics"] is None else summary["metrics"]
        rows = [{"group": group, "figure": figure, "value": value}
                for group, figures in groups.items() if isinstance(figures, dict)
                for figure, value in figures.items() if not isinstance(value, dict)]  # fmt: skip
        _table("metrics", rows, f"{summary['model']} on held-out labels")


def show_rounds(summary: Mapping[str, Any], rounds: list[dict[str, Any]]) -> None:
    """Artifacts of a self-training loop: its rounds, and the champion."""
    with _at_most_a_note():
        _table("rounds", rounds, f"Rounds of {summary['output']}")
        _link("report", f"{summary['output']}/report/index.html", "Every round, criterion by criterion, with pictures")
        _link("weights", summary["champion_weights"], f"The champion {summary['champion']}")


def _markdown(product: Product, summary: Summary) -> str:
    lines = [f"**{words_of_job(summary)}**", "", f"* rows: `{summary['rows_glob']}`"]
    lines += [f"* report: `{summary['report']}`"] * bool(summary.get("report"))
    lines += [f"* left out: {count} x {reason}" for reason, count in summary["left_out"].items()]
    lines += [f"* note: {note}" for note in summary.get("notes") or ()]
    return "\n".join([*lines, "", "```", f'visionmill query {summary["output"]} "{product.query}"', "```"])


def _link(key: str, uri: str | None, description: str) -> None:
    if uri:
        is_file = is_local(uri) and "://" not in uri
        address = f"file://{uri}" if is_file else uri
        told = f"{description}. Browsers follow no link from a page to a file: copy it" if is_file else description
        create_link_artifact(key=key, link=redact(address), link_text=redact(uri), description=redact(told))


def _table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    shown = [{column: _cell(value) for column, value in row.items()} for row in rows[:MAX_ROWS]]
    if shown:
        create_table_artifact(key=key, table=shown, description=redact(description))


def _cell(value: Any) -> Any:
    return redact(value) if isinstance(value, str) else round(value, 4) if isinstance(value, float) else value


@contextmanager
def _at_most_a_note() -> Iterator[None]:
    """What is only shown must not cost a run its end: a server that does not answer is a line in the log."""
    try:
        yield
    except VisionmillError as error:
        logger.warning("not shown on Prefect's page: %s", redact(error.message))
    except Exception as error:  # noqa: BLE001 - see above
        logger.warning("not shown on Prefect's page: %s: %s", type(error).__name__, redact(str(error)))
