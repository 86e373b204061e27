"""The command tree. Heavy imports happen inside the commands, so that ``--help`` answers at once."""

from __future__ import annotations

import atexit
import os
import sys
from importlib.metadata import version as version_of
from typing import Annotated

import typer

from flows.cli import champions, demo, jobs, models, results, services, training
from tasks.product import products


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"visionmill {version_of('visionmill')}")
        raise typer.Exit


def make_app() -> typer.Typer:
    """The command line, with a command for every product that is known by now."""
    app = typer.Typer(
        name="visionmill",
        help="Segment whole image and video datasets: object storage in, queryable Parquet out.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for product in products().values():
        app.command(product.verb)(jobs.job_command(product))
    app.command("digitscape")(training.digitscape)
    app.command("inspect")(training.inspect)
    app.command("train")(training.train)
    app.command("evaluate")(training.evaluate)
    app.command("retrain")(training.retrain)
    app.command("query")(results.query_command())
    app.command("report")(results.report)
    app.command("export")(results.export_command())
    app.command("verify")(results.verify)
    app.command("promote")(champions.promote)
    app.command("rollback")(champions.rollback)
    app.add_typer(models.app, name="models")
    app.command("up")(services.up)
    app.command("ui")(services.ui)
    app.command("down")(services.down)
    app.command("status")(services.status)
    app.command("doctor")(services.doctor)
    app.command("demo")(demo.demo)
    return app


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Console script. Usage errors of the command line itself exit with 2, as click does."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    ended: list[int] = []
    atexit.register(_leave, ended)  # first in, last out: all others have done with their work by then
    try:
        make_app()()
    except SystemExit as end:
        ended.append(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


def _leave(ended: list[int]) -> None:
    """End the process without taking torch, Ray and DuckDB down piece by piece: on a crowded machine that took 9 s."""
    if ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended[0])


if __name__ == "__main__":
    main()
