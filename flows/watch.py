"""The watch: a small scheduled flow that starts the self-training loop when labels or enough objects have arrived.

It asks the output what the last round knew, and Prefect whether a loop is under way; so it needs no event to reach it,
may miss any number of its turns, and starts nothing twice: a run is created under a key made of the state of the data.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Sequence
from pathlib import Path

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterState
from prefect.client.schemas.filters import FlowRunFilterStateType as StateTypes
from prefect.client.schemas.filters import FlowRunFilterTags as Tags
from prefect.client.schemas.objects import FlowRun, StateType

from flows.labels import labels_named, labels_of, labels_to_teach
from flows.loop_parameters import RetrainParameters, WatchParameters
from flows.recording import without_secrets
from flows.steps import Steps, orchestrated_steps
from flows.summary import Summary
from infra.store import open_store
from tasks.ingest.inventory import take_inventory
from tasks.loop.due import Arrivals, arrivals_since, reason_to_retrain

ATTEMPTS = 3
"""So often a loop is started for one state of the data; then a person has to look why it fails."""

_UNFINISHED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]
_ENDED = [StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED]


@flow(name="watch-for-retraining", persist_result=False)
def watch_for_retraining(parameters: WatchParameters) -> Summary:
    """Start the loop if it is due and not under way."""
    with without_secrets():
        return watch(parameters, orchestrated_steps)


def watch(parameters: WatchParameters, step: Steps) -> Summary:
    """The body of the flow."""
    arrivals = step("look for arrivals", look, parameters.retrain)
    reason = reason_to_retrain(arrivals, parameters.min_new_objects)
    found = {"reason": reason, "new_objects": arrivals.new_objects, "labels_changed": arrivals.labels_changed}
    if reason is None:
        return {"outcome": "nothing_to_do", **found}
    return {**step("start the loop", start, parameters, arrivals), **found}


def look(asked: RetrainParameters) -> Arrivals:
    """What the output of the loop has not seen yet."""
    store = open_store(asked.output)
    store.probe()
    with tempfile.TemporaryDirectory(prefix="visionmill-") as folder:
        inventory = take_inventory(asked.unlabelled, folder=Path(folder))
        read = labels_of if asked.allow_dropped else labels_named  # without, the loop refuses what lacks images
        return arrivals_since(store, labels_to_teach(read(asked.labelled, asked), asked), inventory.path)


def start(parameters: WatchParameters, arrivals: Arrivals) -> Summary:
    """Create a run of the loop's deployment, unless one is under way or too many failed on the same data."""
    tag = f"data-{arrivals.signature}"
    with get_client(sync_client=True) as client:
        target = client.read_deployment_by_name(parameters.deployment)
        of_target = FlowRunFilterDeploymentId(any_=[target.id])
        unfinished = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=of_target, state=FlowRunFilterState(type=StateTypes(any_=_UNFINISHED))
            )
        )
        running = under_way(unfinished, dt.datetime.now(dt.UTC))
        if running is not None:
            return {"outcome": "under_way", "flow_run_id": str(running.id)}
        ended = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=of_target,
                tags=Tags(all_=[tag]),
                state=FlowRunFilterState(type=StateTypes(any_=_ENDED)),
            )
        )
        if len(ended) >= ATTEMPTS:
            return {"outcome": "given_up", "flow_run_id": str(ended[0].id)}
        run = client.create_flow_run_from_deployment(
            target.id,
            parameters={"parameters": parameters.retrain.model_dump(mode="json")},
            tags=[tag],
            idempotency_key=f"{tag}-{len(ended)}",
        )
    return {"outcome": "started", "flow_run_id": str(run.id)}


def under_way(unfinished: Sequence[FlowRun], now: dt.datetime) -> FlowRun | None:
    """The first run that is at work or waits to be; those that a schedule has planned for later are neither."""
    for run in unfinished:
        planned = run.auto_scheduled and run.state_type == StateType.SCHEDULED
        if not planned or (run.expected_start_time is not None and run.expected_start_time <= now):
            return run
    return None
