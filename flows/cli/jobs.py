"""``visionmill segment``: the dataset-wide jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.console import Summary, command, people, say
from flows.parameters import EMBEDDED_MODEL, SegmentParameters
from flows.problems import checked


def _workers(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


@command
def segment(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder, glob, s3:// prefix, video, tar/WebDataset shards, COCO JSON, listing, S3 Inventory."
        ),
    ],
    output: Annotated[str, typer.Argument(help="Folder or s3:// prefix that receives the results.")],
    model: Annotated[str, typer.Option(help="Name of a model, or file or folder of its weights.")] = EMBEDDED_MODEL,
    weights: Annotated[str | None, typer.Option(help="Other weights for the model: a file, or random:SEED.")] = None,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster; 'none' runs in this process. Default: a local Ray.")
    ] = None,
    workers: Annotated[str, typer.Option(help="Number of workers, or auto.", metavar="auto|N")] = "auto",
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            help="GPUs of one worker; fractions share a GPU. Default: up to 4 workers share each GPU of this machine."
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Process everything again, in the same version.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Process only the items that failed.")] = False,
    new_version: Annotated[
        bool, typer.Option("--new-version", help="Allow a second version (model or parameters) beside the first.")
    ] = False,
    frame_stride: Annotated[int, typer.Option(help="Every n-th frame of a video.")] = 1,
    score_threshold: Annotated[float, typer.Option(help="Weaker instances are dropped.")] = 0.05,
    max_pixels: Annotated[int, typer.Option(help="Larger images are refused as bombs.")] = 178_956_970,
    max_file_bytes: Annotated[int, typer.Option(help="Larger image files are refused, unfetched.")] = 1 << 30,
    damaged: Annotated[
        str, typer.Option(help="Pixels decoded with a complaint: a failed item, or kept.", metavar="failed|keep")
    ] = "failed",
    colour: Annotated[
        str, typer.Option(help="Convert by stored colour profiles, or take numbers as stored.", metavar="srgb|stored")
    ] = "srgb",
    sample_range: Annotated[
        str,
        typer.Option(help="What becomes black and white beyond 8 bits.", metavar="auto|full|image|LOW:HIGH"),
    ] = "auto",
    batch_size: Annotated[int | None, typer.Option(help="Images per forward pass. Default: by device.")] = None,
    shard_items: Annotated[int, typer.Option(help="At most so many items in a shard.")] = 256,
    shard_bytes: Annotated[int, typer.Option(help="About so many source bytes in a shard.")] = 64 << 20,
    memory_bytes: Annotated[int, typer.Option(help="Bytes in flight inside one worker.")] = 512 << 20,
    compile: Annotated[str, typer.Option(help="Compiled inference.", metavar="auto|off|on")] = "auto",
    max_consecutive_failures: Annotated[int, typer.Option(help="The circuit opens after so many in a row.")] = 200,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report/index.html at the end.")] = True,
    prefect: Annotated[
        bool,
        typer.Option(
            "--prefect/--no-prefect", help="Record the run in the standing Prefect server.", envvar="VISIONMILL_PREFECT"
        ),
    ] = True,
) -> Summary:
    """Segment a whole dataset. Only what is new or changed is processed; run it again after any accident."""
    parameters = checked(
        SegmentParameters,
        source=source,
        output=output,
        model=model,
        weights=weights,
        ray=ray,
        workers=_workers(workers),
        gpus_per_worker=gpus_per_worker,
        fresh=fresh,
        retry_failed=retry_failed,
        new_version=new_version,
        frame_stride=frame_stride,
        score_threshold=score_threshold,
        max_pixels=max_pixels,
        max_file_bytes=max_file_bytes,
        damaged=damaged,
        colour=colour,
        sample_range=sample_range,
        batch_size=batch_size,
        shard_items=shard_items,
        shard_bytes=shard_bytes,
        memory_bytes=memory_bytes,
        compile=compile,
        max_consecutive_failures=max_consecutive_failures,
        report=report,
    )
    from flows.segment import run_segment

    summary = run_segment(parameters, orchestrated=prefect, console=people)
    _tell(summary)
    return summary


def _tell(summary: Summary) -> None:
    """The closing words of a job, for people."""
    counts = summary["items"]
    assert isinstance(counts, dict)
    for reason, count in summary["left_out"].items():  # type: ignore[attr-defined]
        say(f"left out: {count} x {reason}", style="dim")
    if not summary["run_id"]:
        say(f"nothing to do: all {counts['in_inventory']} items are committed already", style="green")
        return
    style = "green" if not counts["failed"] + counts["quarantined"] else "yellow"
    say(
        f"{counts['ok']} ok, {counts['failed']} failed, {counts['quarantined']} quarantined "
        f"in {summary['seconds']:.1f} s ({summary['items_per_s']:.1f} items/s)",
        style=style,
    )
    for line in summary.get("error_sample") or []:  # type: ignore[attr-defined]
        say(f"  {line}", style="yellow")
    say(f"rows:   {summary['rows_glob']}")
    if summary.get("report"):
        say(f"report: {summary['report']}")
    say(f'query:  visionmill query {summary["output"]} "SELECT name, count(*) AS n FROM instances GROUP BY name"')
