"""``visionmill demo``: the whole thing on embedded data."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.console import JsonFlag, Summary, command, long_work, people, say
from infra.problems import checked
from tasks.product import default_product


@command
def demo(
    folder: Annotated[Path, typer.Option(help="Where the report is copied to.")] = Path(".demo"),
    images: Annotated[int, typer.Option(min=1, help="Scenes in the bucket.")] = 96,
    frames: Annotated[int, typer.Option(min=1, help="Frames of the short video.")] = 36,
    as_json: JsonFlag = False,
) -> Summary:
    """Compose data into a local S3 bucket, segment it, answer a query, write a report."""
    started = time.monotonic()
    say("1/4  starting the local services (loopback only; `visionmill down` stops them)", style="bold")
    with long_work():
        from flows import demo as job
        from flows.cli.results import _print_table
        from flows.job import run_job
        from infra import services
        from tasks.output.query import run_query

        endpoint = services.ensure_s3(bucket=job.BUCKET)
        os.environ.update(endpoint.environment())
        say(f"2/4  composing {images} scenes and a video of {frames} frames into {job.SOURCE}", style="bold")
        job.compose_demo_data(images, frames)
    product = default_product()
    say(f"3/4  {product.doing}:  visionmill {product.verb} {job.SOURCE} {job.OUTPUT} --model {job.MODEL}", style="bold")
    parameters = checked(product.parameters, source=job.SOURCE, output=job.OUTPUT, model=job.MODEL, shard_items=16)
    run = run_job(product, parameters, orchestrated=True, console=people)
    say(f'4/4  asking:  visionmill query {job.OUTPUT} "{job.QUERY}"', style="bold")
    rows = run_query(job.OUTPUT, job.QUERY)
    _print_table(rows, 100, to_people=as_json)
    page = job.copy_report(folder)
    say(f"report with pictures: {page}", style="green")
    say(
        f"{job.MODEL} finds handwritten digits only. Of your own pictures: people, vehicles, animals and more without "
        "--model; nuclei of cells with --model nuclei",
        style="dim",
    )
    say(
        f'all in {time.monotonic() - started:.0f} s; the bucket stays up: eval "$(visionmill status --env)"',
        style="dim",
    )
    return {"run": run, "query": job.QUERY, "rows": rows.to_pylist(), "report": str(page)}
