"""Move the champion of a retraining output: promote or decline a candidate, or go back. Two small flows of one step.

A candidate that waits for approval holds no process; whoever decides runs one of these, by ``visionmill promote |
rollback``, from Prefect's page, or through its API. Each move is one compare-and-swap of the champion pointer, with
approver, reason and time; see :mod:`tasks.loop.champion`.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict

from prefect import flow

from flows.loop_parameters import PromoteParameters, RollbackParameters
from flows.recording import without_secrets
from flows.steps import Steps, orchestrated_steps
from flows.summary import Summary
from infra.errors import UsageError
from infra.store import open_store
from tasks.loop import champion


@flow(name="promote-model", persist_result=False)
def promote_model(parameters: PromoteParameters) -> Summary:
    """Make a candidate that passed the gate the champion, or say no to it."""
    with without_secrets():
        return promote(parameters, orchestrated_steps)


@flow(name="rollback-model", persist_result=False)
def rollback_model(parameters: RollbackParameters) -> Summary:
    """Make an earlier champion the champion again."""
    with without_secrets():
        return rollback(parameters, orchestrated_steps)


def promote(parameters: PromoteParameters, step: Steps) -> Summary:
    """The body of the flow and of the command.

    Raises:
        UsageError: nobody waits, several do and none is named, or approver or reason are missing.
        PromotionRefused: the gate refused the candidate, or it was judged against another champion.
    """
    if parameters.decline and not parameters.candidate:
        raise UsageError("to decline takes the candidate's verdict id", hint="`visionmill promote OUTPUT --list`")
    return step("decline" if parameters.decline else "promote", _decide, parameters)


def _decide(parameters: PromoteParameters) -> Summary:
    store, who, now = open_store(parameters.output), parameters.approver, dt.datetime.now(dt.UTC)
    if parameters.decline:
        return _moved(champion.decline(store, parameters.candidate, approver=who, reason=parameters.reason, at=now))
    return _moved(champion.promote(store, parameters.candidate or None, approver=who, reason=parameters.reason, at=now))


def rollback(parameters: RollbackParameters, step: Steps) -> Summary:
    """The body of the flow and of the command.

    Raises:
        UsageError: approver or reason are missing.
        PromotionRefused: there is no such champion to go back to.
    """
    return step("roll back", _go_back, parameters)


def _go_back(parameters: RollbackParameters) -> Summary:
    store, now = open_store(parameters.output), dt.datetime.now(dt.UTC)
    return _moved(
        champion.rollback(store, parameters.to or None, approver=parameters.approver, reason=parameters.reason, at=now)
    )


def _moved(pointer: champion.Pointer) -> Summary:
    return {"champion": asdict(pointer.champion) if pointer.champion else None, "move": asdict(pointer.moves[-1])}
