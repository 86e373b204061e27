"""The self-training loop: data, first model, then rounds of teacher, selection, student, gate. One call for each.

Every step leaves an object that is named by its content, and looks first whether it is there. So a loop that was killed
goes on where it was, to the same training set and the same decision; see :mod:`flows.rounds` for what a round does.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any

from prefect import flow
from rich.console import Console

from flows import page
from flows.labels import labels_of, labels_to_teach
from flows.loop_parameters import RetrainParameters
from flows.parameters import LabelParameters
from flows.progress import progress_shown
from flows.recording import prepare_recording, without_secrets
from flows.round_steps import Running
from flows.rounds import begin, turn
from flows.steps import Steps, orchestrated_steps, plain_steps
from flows.summary import Summary
from flows.work import own_device
from infra.store import Store, open_store
from tasks.ingest.inventory import take_inventory
from tasks.loop.apart import distances
from tasks.loop.champion import read_pointer
from tasks.loop.data import LoopData, prepare_data
from tasks.loop.due import remember_labels
from tasks.loop.fingerprints import entries_of
from tasks.loop.journal import end_loop
from tasks.loop.loops import Loop, check_division, open_loop
from tasks.loop.records import last_division
from tasks.loop.rounds import RoundOutcome
from tasks.output.layout import canonical_json
from tasks.output.lease import hold_lease
from tasks.parameters import LookParameters

UNCHANGED_SHARE = 0.02
REFUSALS_IN_A_ROW = 2
_ANY = "model"  # in the name of a run whose labels are still to say what they are


def run_retrain(
    parameters: RetrainParameters,
    *,
    orchestrated: bool = True,
    console: Console | None = None,
    step: Steps = plain_steps,
) -> Summary:
    """Carry the loop out from here; see :func:`flows.job.run_job`.

    Args:
        parameters: what to do.
        orchestrated: whether Prefect records the run; the results are the same.
        console: where the progress of inference is drawn; None draws none.
        step: calls the steps where Prefect does not; experiments put themselves in between.

    Raises:
        VisionmillError: as the steps do; what is there by then stays, and the same call goes on from there.
    """
    with progress_shown(console):
        if not orchestrated:
            return _retrain(parameters, step, console)
        prepare_recording()
        summary: Summary = retrain_model(parameters)
        return summary


def _name_of(parameters: RetrainParameters) -> str:
    task = parameters.task or _ANY
    return f"retrain {task} on {page.short(parameters.labelled)} and {page.short(parameters.unlabelled)}"


@flow(name="retrain-model", flow_run_name=page.called(_name_of), persist_result=False)
def retrain_model(parameters: RetrainParameters) -> Summary:
    """Teach a student with a champion's labels; promote it if the gate lets it through."""
    with without_secrets(), page.run_shown(["retrain", parameters.task or _ANY]):
        summary = _retrain(parameters, orchestrated_steps, None)
        page.show_rounds(summary, [_told(outcome) for outcome in summary["rounds"]])
        return page.completed(words_of_loop(summary), summary)  # type: ignore[return-value]  # Prefect gives its data


def words_of_loop(summary: Summary) -> str:
    """A loop in one line."""
    passed = sum(outcome["gate"]["passed"] for outcome in summary["rounds"])
    return f"{len(summary['rounds'])} rounds, {passed} passed the gate; champion {summary['champion']}"


def _told(outcome: dict[str, Any]) -> dict[str, Any]:
    gate = outcome["gate"]
    return {
        "round": outcome["round"],
        "accepted": sum(outcome["accepted"].values()),
        "candidate": gate["candidate"],
        "champion": gate["champion"],
        "baseline": gate["baseline"],
        "passed": gate["passed"],
        "waits": outcome["waits_for_approval"],
        "reasons": "; ".join(gate["reasons"]),
    }


def _retrain(parameters: RetrainParameters, step: Steps, console: Console | None) -> Summary:
    began = time.monotonic()
    store = open_store(parameters.output)
    store.probe()
    data = step("divide data", divide, parameters, store)
    loop = open_loop(parameters, store, data, name_of(parameters, data), device=own_device(parameters.gpus))
    running = Running(parameters, loop, step, console)
    with hold_lease(store, loop.run_id):
        remember_labels(store, loop.run_id, data.labels)
        step("first models", begin, running)
        outcomes = _rounds(running)
        end_loop(store, loop.run_id)
    return _summary(loop, outcomes, time.monotonic() - began)


def divide(parameters: RetrainParameters, store: Store) -> LoopData:
    """Who is in which split. The labels of unlabelled items, if there are any, are never looked for.

    A loop that learnt from machines, was calibrated on them and judged by them would only agree with itself.
    """
    labels = labels_to_teach(labels_of(parameters.labelled, parameters), parameters)
    with tempfile.TemporaryDirectory(prefix="visionmill-") as folder:
        inventory = take_inventory(parameters.unlabelled, folder=Path(folder))
        data = prepare_data(
            store,
            labels,
            entries_of(inventory.path),
            shares=parameters.effective_shares,
            salt=str(parameters.seed),
            group_rule=parameters.group_rule,
            previous=last_division(store),
            frame_stride=parameters.frame_stride,
        )
    check_division(data, crossfit=parameters.crossfit)
    return data


def name_of(parameters: RetrainParameters, data: LoopData) -> str:
    """Names a loop by what decides its outcome; see :mod:`tasks.loop.journal`."""
    elsewhere = {*LabelParameters.model_fields, *LookParameters.model_fields}
    elsewhere |= {"detector", "box_score", "box_classes", "geometry_precision"}
    decisive = parameters.model_dump(exclude={"ray", "log", "output", "require_approval", *elsewhere})
    decisive |= parameters.look_options() | parameters.object_options() | parameters.promise_options()
    content = canonical_json([decisive, data.manifest.manifest_sha256])
    return f"retrain-{hashlib.sha256(content).hexdigest()[:16]}"


def _rounds(running: Running) -> list[RoundOutcome]:
    """Rounds until they are used up, two candidates in a row were refused, nothing changes, or nothing is accepted."""
    outcomes: list[RoundOutcome] = []
    for number in range(1, running.parameters.rounds + 1):
        outcome = turn(running, number, outcomes[-1] if outcomes else None)
        outcomes.append(outcome)
        refused = [not each.passed for each in outcomes[-REFUSALS_IN_A_ROW:]]
        if len(refused) == REFUSALS_IN_A_ROW and all(refused):
            break
        if outcome.candidate_id is None or outcome.waits or outcome.changed_share < UNCHANGED_SHARE:
            break
    return outcomes


def _summary(loop: Loop, outcomes: list[RoundOutcome], seconds: float) -> Summary:
    champion = read_pointer(loop.store)[0].champion
    return {
        "run_id": loop.run_id,
        "output": loop.store.uri,
        "labels": loop.data.labels.to_json(),
        "kind": loop.kind,
        "recipe": loop.recipe.to_json(),
        "splits": loop.data.manifest.counts,
        "kept_out_of_unlabelled": loop.data.manifest.leakage,
        "splits_apart": [each.to_json() for each in distances(loop.data.items)],
        "champion": None if champion is None else champion.model_id,
        "champion_weights": None if champion is None else champion.weights_uri,
        "rounds": [outcome.to_json() for outcome in outcomes],
        "seconds": round(seconds, 3),
        "exit_code": 0,
    }
