"""``visionmill up | down | status | doctor``: the standing local services and the health of the machine."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.console import Summary, command, long_work, people, say, table

S3Flag = Annotated[bool, typer.Option("--s3", help="Also a local S3 server (SeaweedFS).")]
WorkerFlag = Annotated[bool, typer.Option("--worker", help="Also a worker that runs scheduled deployments.")]


@command
def up(
    s3: S3Flag = False,
    worker: WorkerFlag = False,
) -> Summary:
    """Start the standing local services (loopback only) and keep them until `visionmill down`."""
    with long_work():
        from infra import services

        state = services.up(s3=s3, worker=worker)
    return _show(state)


@command
def ui(
    path: Annotated[
        str, typer.Argument(help="Where to on the page: an address that a run printed, or its path.")
    ] = "/",
    browser: Annotated[bool, typer.Option(help="Open a browser; without, only say what to open.")] = True,
) -> Summary:
    """Open Prefect's page, logged in: runs, their progress, logs and results. Starts the server if needed."""
    import webbrowser
    from urllib.parse import urlsplit

    wanted = urlsplit(path)._replace(scheme="", netloc="").geturl()
    with long_work():
        from infra import services

        logged_in, plain = services.page_of(wanted or "/")
    opened = browser and webbrowser.open(logged_in)
    if not opened:
        say(f"open in a browser of this machine: {logged_in}", style="green")
    say(f"the page is {plain}")
    say(
        "from elsewhere: forward its port by ssh -L, and log in as PREFECT_API_AUTH_STRING of `visionmill status --env`"
    )
    return {"open": logged_in, "address": plain}


@command
def down() -> Summary:
    """Stop the local services. What they stored stays."""
    with long_work():
        from infra import services
        from infra.telling import tell

        tell("stopping the services")
        stopped = services.down()
    say(f"stopped: {', '.join(stopped) or 'nothing was running'}", style="green")
    return {"stopped": list(stopped)}


@command
def status(
    env: Annotated[
        bool, typer.Option("--env", help="Print `export ...` lines for a shell (they hold secrets).")
    ] = False,
) -> Summary:
    """What is running, where, and whether it answers. `eval "$(visionmill status --env)"` points a shell at it."""
    from infra import services

    if env:
        typer.echo(services.environment_exports())
        return {}
    return _show(services.status())


def _show(state) -> Summary:  # type: ignore[no-untyped-def]
    listing = table("service", "state", "address", "pid", "log")
    for service in state.services:
        listing.add_row(service.name, service.state, service.url, str(service.pid or ""), str(service.log or ""))
    people.print(listing)
    return {
        "state_dir": str(state.state_dir),
        "services": [
            {"name": s.name, "state": s.state, "url": s.url, "pid": s.pid, "log": str(s.log)} for s in state.services
        ],
    }


@command
def doctor(
    output: Annotated[
        str | None, typer.Argument(help="An output to try writing to (a scratch key, removed again).")
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also import torch and Prefect's server, and start a Ray (10 s).")
    ] = False,
) -> Summary:
    """Look this machine over: versions that work together, loopback, compiler, disk, storage. Exit code 1 if unfit."""
    with long_work():
        from infra.doctor import checks
        from infra.telling import tell

        tell("looking the machine over")
        found = checks(output, deep=deep)
    for check in found:
        mark, style = {True: ("ok  ", "green"), False: ("FAIL", "red"), None: ("note", "yellow")}[check.ok]
        say(f"{mark} {check.name}: {check.detail}", style=style)
        if check.hint and check.ok is not True:
            say(f"     {check.hint}", style="dim")
    failed = [check.name for check in found if check.ok is False]
    return {
        "checks": [{"name": c.name, "ok": c.ok, "detail": c.detail, "hint": c.hint} for c in found],
        "exit_code": 1 if failed else 0,
    }
