"""``visionmill promote | rollback``: move the champion of a retraining output, or see who waits."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from typing import Annotated

import typer

from flows.cli.console import DebugFlag, JsonFlag, Summary, command, say

OutputArgument = Annotated[str, typer.Argument(help="Output of a retraining: folder or s3:// prefix.")]
ApproverOption = Annotated[str, typer.Option("--approver", help="Who says so; your login name unless given.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, in words.")]


@command
def promote(
    output: OutputArgument,
    candidate: Annotated[
        str, typer.Argument(help="Verdict id of the candidate; the one that waits, if only one.")
    ] = "",
    approver: ApproverOption = "",
    reason: ReasonOption = "",
    decline: Annotated[bool, typer.Option("--decline", help="Say no to the candidate: the champion stays.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Only show champion, candidates and their reasons.")] = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Summary:
    """Make a candidate that passed the gate the champion. Refused candidates stay refused, with their reasons."""
    if listed:
        return _list(output)
    from flows import promote as flow
    from flows.parameters import PromoteParameters, checked
    from flows.steps import plain_steps

    asked = checked(
        PromoteParameters, output=output, candidate=candidate, approver=approver or getpass.getuser(), reason=reason,
        decline=decline,
    )  # fmt: skip
    summary = flow.promote(asked, plain_steps)
    if decline:
        say(f"declined {summary['move']['model']['model_id']}; the champion stays", style="yellow")
    else:
        say(f"champion: {summary['champion']['model_id']}", style="green")
    return summary


@command
def rollback(
    output: OutputArgument,
    to: Annotated[str, typer.Option("--to", help="Model id of an earlier champion; the one before unless given.")] = "",
    approver: ApproverOption = "",
    reason: ReasonOption = "",
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Summary:
    """Make an earlier champion the champion again."""
    from flows import promote as flow
    from flows.parameters import RollbackParameters, checked
    from flows.steps import plain_steps

    asked = checked(RollbackParameters, output=output, to=to, approver=approver or getpass.getuser(), reason=reason)
    summary = flow.rollback(asked, plain_steps)
    say(f"champion: {summary['champion']['model_id']}", style="green")
    return summary


def _list(output: str) -> Summary:
    from infra.store import open_store
    from tasks.loop import champion

    store = open_store(output)
    pointer, _ = champion.read_pointer(store)
    candidates = champion.list_candidates(store)
    say(f"champion: {pointer.champion.model_id if pointer.champion else 'none yet'}")
    for record, state in candidates:
        say(f"{record.verdict_id}  {state:9} {record.model.model_id}  {'; '.join(record.reasons)}")
    return {
        "champion": asdict(pointer.champion) if pointer.champion else None,
        "candidates": [{**asdict(record), "state": state} for record, state in candidates],
        "moves": [asdict(move) for move in pointer.moves],
    }
