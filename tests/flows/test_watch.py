"""The watch starts the loop's deployment once for a state of the data, by way of a real Prefect server."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.client.schemas.objects import FlowRun, State, StateType

from flows import watch
from flows.loop_parameters import RetrainParameters, WatchParameters
from flows.steps import plain_steps
from infra.errors import UsageError
from infra.problems import checked
from infra.store import open_store
from tasks.loop.due import remember_labels
from tests.flows.deployments import ROOT, deploying, prefect_client, runs_of
from tests.tasks.loop.scenes import picture, store_label_set, write
from tests.tasks.loop.test_due import LABELS
from tests.tasks.loop.test_lineage import a_round

POOL = "nobody-works-here"
"""Runs stay as this test leaves them: the worker of another test serves the pool of the repository's file."""
NOW = dt.datetime(2026, 11, 26, 12, tzinfo=dt.UTC)


def planned(kind: StateType, *, minutes: int = 0, by_schedule: bool = True) -> FlowRun:
    at = NOW + dt.timedelta(minutes=minutes)
    state = State(type=kind)
    return FlowRun(flow_id=os.urandom(16).hex(), state=state, state_type=kind, expected_start_time=at,
                   auto_scheduled=by_schedule)  # fmt: skip


def test_a_run_that_a_schedule_plans_for_later_does_not_hold_the_loop_back() -> None:
    later, late = planned(StateType.SCHEDULED, minutes=60), planned(StateType.SCHEDULED, minutes=-1)
    asked = planned(StateType.SCHEDULED, minutes=60, by_schedule=False)
    running = planned(StateType.RUNNING)
    assert watch.under_way([], NOW) is None
    assert watch.under_way([later], NOW) is None
    for each in (late, asked, running):
        assert watch.under_way([later, each], NOW) is each


def test_nonsense_is_refused() -> None:
    loop = RetrainParameters(labelled="l", unlabelled="u", output="o")
    with pytest.raises(UsageError, match="deployment"):
        checked(WatchParameters, retrain=loop, deployment="retrain")
    with pytest.raises(UsageError, match="min_new_objects"):
        checked(WatchParameters, retrain=loop, min_new_objects=0)


def test_overlapping_loops_wait_and_overlapping_watches_are_dropped() -> None:
    content = yaml.safe_load((ROOT / "infra" / "prefect.yaml").read_text())
    limits = {spec["name"]: spec.get("concurrency_limit") for spec in content["deployments"]}
    assert limits["retrain"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert limits["watch"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}


@pytest.fixture
def api(prefect_api: str) -> Iterator[httpx.Client]:
    with prefect_client(prefect_api) as client:
        yield client


@pytest.fixture
def deploy(api: httpx.Client, tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    api.post("/work_pools/", json={"name": POOL, "type": "process"})  # or it is there
    with deploying(api, tmp_path, POOL) as deployed:
        yield deployed


@pytest.mark.prefect
@pytest.mark.timeout(240)
def test_the_loop_is_started_once_for_a_state_of_the_data_and_given_up_after_three_failures(
    api: httpx.Client, deploy: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    labelled, images, output = tmp_path / "labels.parquet", tmp_path / "unlabelled", tmp_path / "loop"
    store_label_set(str(labelled), LABELS)
    write(images, "new.png", picture(1))
    places = {
        "VISIONMILL_LABELLED": str(labelled),
        "VISIONMILL_UNLABELLED": str(images),
        "VISIONMILL_LOOP": str(output),
    }
    found = deploy(places)
    asked = WatchParameters(**found["watch"]["parameters"]["parameters"])
    assert asked.retrain.output == str(output)

    def runs() -> list[dict[str, Any]]:
        return runs_of(api, found["retrain"])

    def end(run_id: str, kind: str) -> None:
        body = {"state": {"type": kind, "name": kind.capitalize()}, "force": True}
        api.post(f"/flow_runs/{run_id}/set_state", json=body).raise_for_status()

    for attempt in range(1, watch.ATTEMPTS + 1):
        told = watch.watch_for_retraining(asked) if attempt == 1 else watch.watch(asked, plain_steps)
        assert (told["outcome"], told["reason"]) == ("started", "no round has ended in this output yet")
        assert watch.watch(asked, plain_steps)["outcome"] == "under_way"
        assert len(runs()) == attempt
        [run] = [run for run in runs() if run["id"] == told["flow_run_id"]]
        assert run["parameters"]["parameters"]["labelled"] == str(labelled)
        end(told["flow_run_id"], "FAILED")
    assert watch.watch(asked, plain_steps)["outcome"] == "given_up"

    store = open_store(str(output))
    a_round(store)  # somebody mended it: a round has ended
    remember_labels(store, "run-1", LABELS)
    assert watch.watch(asked, plain_steps)["outcome"] == "nothing_to_do", "one new object is not enough"
    few = asked.model_copy(update={"min_new_objects": 1})
    assert watch.watch(few, plain_steps)["outcome"] == "started"
    assert len(runs()) == watch.ATTEMPTS + 1
