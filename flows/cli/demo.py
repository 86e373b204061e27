"""``visionmill demo``: the whole thing on embedded data."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.console import JsonFlag, Summary, command, long_work, people, say
from infra.problems import checked

if TYPE_CHECKING:
    from flows.demo import DemoJob


@command
def demo(
    folder: Annotated[Path, typer.Option(help="Where the reports are copied to.")] = Path(".demo"),
    images: Annotated[int, typer.Option(min=1, help="Scenes in the bucket.")] = 96,
    frames: Annotated[int, typer.Option(min=1, help="Frames of the short video.")] = 36,
    as_json: JsonFlag = False,
) -> Summary:
    """Compose data into a local S3 bucket, segment it, find points on its objects, query both, write reports."""
    started = time.monotonic()
    with long_work():
        from flows import demo as content
        from infra import services

        jobs = content.demo_jobs()
        steps = _numbered(2 + 2 * len(jobs))
        say(f"{next(steps)}  starting the local services (loopback only; `visionmill down` stops them)", style="bold")
        endpoint = services.ensure_s3(bucket=content.BUCKET)
        os.environ.update(endpoint.environment())
        say(
            f"{next(steps)}  composing {images} scenes and a video of {frames} frames in {content.SOURCE}", style="bold"
        )
        content.compose_demo_data(images, frames)
    done = {job.product.name: _carry_out(job, steps, folder, to_people=as_json) for job in jobs}
    say(
        "these models know handwritten digits only. Of your own pictures: people, vehicles, animals and more without "
        "--model; nuclei of cells with --model nuclei",
        style="dim",
    )
    say(
        f'all in {time.monotonic() - started:.0f} s; the bucket stays up: eval "$(visionmill status --env)"',
        style="dim",
    )
    return {"jobs": done}


def _carry_out(job: DemoJob, steps: Iterator[str], folder: Path, *, to_people: bool) -> Summary:
    """Run a job as its command would, ask, and copy the report."""
    from flows.cli.results import _print_table
    from flows.demo import SOURCE, copy_report
    from flows.job import run_job
    from tasks.output.query import run_query

    product = job.product
    options = " ".join(f"--{name} {value}" for name, value in job.options.items())
    say(f"{next(steps)}  {product.doing}:  visionmill {product.verb} {SOURCE} {job.output} {options}", style="bold")
    parameters = checked(product.parameters, source=SOURCE, output=job.output, shard_items=16, **job.options)
    run = run_job(product, parameters, orchestrated=True, console=people)
    say(f'{next(steps)}  asking:  visionmill query {job.output} "{job.query}"', style="bold")
    rows = run_query(job.output, job.query)
    _print_table(rows, 100, to_people=to_people)
    page = copy_report(job, folder)
    say(f"report with pictures: {page}", style="green")
    return {"run": run, "query": job.query, "rows": rows.to_pylist(), "report": str(page)}


def _numbered(count: int) -> Iterator[str]:
    return (f"{step}/{count}" for step in range(1, count + 1))
