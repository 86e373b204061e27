"""``visionmill promote | rollback``: move the champion of a retraining output, or see who waits."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from typing import Annotated, TypeVar

import typer

from flows.cli.console import Summary, command, say
from flows.loop_parameters import MoveParameters, PromoteParameters, RollbackParameters

M = TypeVar("M", bound=MoveParameters)


@command
def promote(
    parameters: PromoteParameters,
    listed: Annotated[bool, typer.Option("--list", help="Only show champion, candidates and their reasons.")] = False,
) -> Summary:
    """Make a candidate that passed the gate the champion. Refused candidates stay refused, with their reasons."""
    if listed:
        return _list(parameters.output)
    _refuse_no_loop(parameters.output)
    from flows import promote as flow
    from flows.steps import plain_steps

    summary = flow.promote(_with_approver(parameters), plain_steps)
    if parameters.decline:
        say(f"declined {summary['move']['model']['model_id']}; the champion stays", style="yellow")
    else:
        _tell(summary["champion"]["model_id"], summary["champion"]["weights_uri"])
    return summary


@command
def rollback(parameters: RollbackParameters) -> Summary:
    """Make an earlier champion the champion again."""
    _refuse_no_loop(parameters.output)
    from flows import promote as flow
    from flows.steps import plain_steps

    summary = flow.rollback(_with_approver(parameters), plain_steps)
    _tell(summary["champion"]["model_id"], summary["champion"]["weights_uri"])
    return summary


def _tell(model_id: str, weights_uri: str) -> None:
    say(f"champion: {model_id}", style="green")
    say(f"weights: {weights_uri}")


def _with_approver(parameters: M) -> M:
    """Whoever is logged in, unless somebody else is named."""
    return parameters.model_copy(update={"approver": parameters.approver or getpass.getuser()})


def _refuse_no_loop(output: str) -> None:
    """Before Prefect is imported, which takes seconds."""
    from infra.store import open_store
    from tasks.loop.champion import check_output

    check_output(open_store(output))


def _list(output: str) -> Summary:
    from infra.store import open_store
    from tasks.loop import champion

    store = open_store(output)
    champion.check_output(store)
    pointer, _ = champion.read_pointer(store)
    candidates = champion.list_candidates(store)
    if pointer.champion is None:
        say("champion: none yet")
    else:
        _tell(pointer.champion.model_id, pointer.champion.weights_uri)
    for record, state in candidates:
        say(f"{record.verdict_id}  {state:9} {record.model.model_id}  {'; '.join(record.reasons)}")
    return {
        "champion": asdict(pointer.champion) if pointer.champion else None,
        "candidates": [{**asdict(record), "state": state} for record, state in candidates],
        "moves": [asdict(move) for move in pointer.moves],
    }
