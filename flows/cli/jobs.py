"""The dataset-wide jobs: one command for each product, called after its verb (``visionmill segment``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from flows.cli.console import PrefectFlag, Summary, command, long_work, people, say
from tasks.parameters import JobParameters
from tasks.product import Product

DryRunFlag = Annotated[
    bool, typer.Option("--dry-run", help="Only say what would be done, and about how long it takes; writes nothing.")
]


def job_command(product: Product) -> Callable[..., None]:
    """The command of a product; its options are the fields of the product's parameters."""

    def job(parameters: JobParameters, dry_run: DryRunFlag = False, prefect: PrefectFlag = True) -> Summary:
        from flows.refusals import refuse_at_once

        refuse_at_once(product, parameters, is_tried=not dry_run)
        if dry_run:
            return _foresee(product, parameters)
        with long_work():
            from flows.job import run_job

            summary = run_job(product, parameters, orchestrated=prefect, console=people)
        _tell(summary, product)
        return summary

    job.__annotations__["parameters"] = product.parameters
    job.__doc__ = (
        f"{product.verb.capitalize()} a whole dataset. "
        "Only what is new or changed is processed; run it again after any accident."
    )
    return command(job)


def _foresee(product: Product, parameters: JobParameters) -> Summary:
    """What a dry run says, for people too."""
    from infra.telling import duration

    with long_work():
        from flows.dry_run import dry_run

        summary = dry_run(product, parameters)
    if summary["outcome"] == "nothing_to_do":
        _tell(summary, product)
        return summary
    say(
        f"would {product.verb} {summary['items']['to_do']:,} items of {summary['objects']:,} objects"
        f" ({summary['videos']:,} videos, {summary['bytes'] / 2**20:,.1f} MiB) in {summary['shards']:,} shards",
        style="green",
    )
    if summary["seconds_per_item"] is not None:
        say(
            f"measured: {1000 * summary['seconds_per_item']:,.0f} ms an item in one worker ({summary['measured_items']}"
            f" items); about {duration(summary['estimated_seconds'])} with {summary['workers']} worker(s)"
        )
    say("nothing was written", style="dim")
    return summary


def _tell(summary: Summary, product: Product) -> None:
    """The closing words of a job, for people."""
    from flows.summary import words_of_job  # here, because every command imports this module

    counts = summary["items"]
    assert isinstance(counts, dict)
    for reason, count in summary["left_out"].items():  # type: ignore[attr-defined]
        say(f"left out: {count} x {reason}", style="dim")
    if not summary["run_id"]:
        say(words_of_job(summary), style="green")
        _tell_report(summary)
        return
    say(words_of_job(summary), style="green" if not counts["failed"] + counts["quarantined"] else "yellow")
    for line in summary.get("notes") or []:  # type: ignore[attr-defined]
        say(f"note: {line}", style="yellow")
    for line in summary.get("error_sample") or []:  # type: ignore[attr-defined]
        say(f"  {line}", style="yellow")
    say(f"rows:   {summary['rows_glob']}")
    _tell_report(summary)
    say(f'query:  visionmill query {summary["output"]} "{product.query}"')


def _tell_report(summary: Summary) -> None:
    if summary.get("report"):
        say(f"report: {summary['report']}")
    if summary.get("report_problem"):
        say(f"report: {summary['report_problem']}", style="yellow")
