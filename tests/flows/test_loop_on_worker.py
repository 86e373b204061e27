"""The whole way of a trigger: a watch finds new data, a worker carries the loop out, the next watch finds nothing."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows import watch
from flows.loop_parameters import WatchParameters
from flows.steps import plain_steps
from infra import services
from infra.store import Store, open_store
from tasks.loop.champion import Model, read_pointer, record_candidate
from tasks.loop.gate import Criterion, Verdict
from tasks.loop.schemas import MODELS, ROUNDS
from tasks.output import tables
from tests.flows.deployments import deploying, prefect_client, runs_of
from tests.flows.tiny_loops import tiny_loop

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(420)]
DEADLINE_S = 300
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def ended(api: httpx.Client, run_id: str) -> dict[str, Any]:
    """The run, once it has."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        run: dict[str, Any] = api.get(f"/flow_runs/{run_id}").raise_for_status().json()
        if run["state_type"] in ENDED:
            return run
        time.sleep(0.3)
    raise AssertionError(f"{run['name']} is still {run['state_name']}")


def decide_by_hand(api: httpx.Client, found: dict[str, Any], store: Store, output: str) -> list[tuple[str, str]]:
    """A candidate that waits is promoted and rolled back by runs of deployments; the moves that this must make."""
    champion = read_pointer(store)[0].champion
    assert champion is not None
    now = dt.datetime.now(dt.UTC)
    verdict = Verdict("r", 9, champion.model_id, "better@1", (Criterion("better", 0.02, ">=", 0.01),), now)
    record_candidate(store, verdict, Model("better@1", "s3://w/better", "a" * 64, "r", 9), needs_approval=True, at=now)
    for name, approver in (("promote", "ada"), ("rollback", "bob")):
        asked = {"parameters": {"output": output, "approver": approver, "reason": "a test"}}
        made = api.post(f"/deployments/{found[name]['id']}/create_flow_run", json={"parameters": asked})
        run = ended(api, made.raise_for_status().json()["id"])
        assert run["state_type"] == "COMPLETED", run["state"]
        moved = read_pointer(store)[0].champion
        assert moved is not None and (moved.model_id == "better@1") is (name == "promote")
    return [("promote", "ada"), ("rollback", "bob")]


def test_a_watch_starts_the_loop_a_worker_carries_it_out_and_the_next_watch_starts_nothing(
    prefect_api: str, services_dir: Path, tmp_path: Path
) -> None:
    asked = tiny_loop(tmp_path)
    names = {"labelled": "VISIONMILL_LABELLED", "unlabelled": "VISIONMILL_UNLABELLED", "output": "VISIONMILL_LOOP"}
    places = {variable: asked.pop(name) for name, variable in names.items()}
    services.ensure_worker(state_dir=services_dir)
    with prefect_client(prefect_api) as api, deploying(api, tmp_path, "visionmill") as deploy:
        found = deploy(places, **asked)

        made = api.post(f"/deployments/{found['watch']['id']}/create_flow_run", json={}).raise_for_status().json()
        watched = ended(api, made["id"])
        assert watched["state_type"] == "COMPLETED", watched["state"]
        [started] = runs_of(api, found["retrain"])
        run = ended(api, started["id"])
        assert run["state_type"] == "COMPLETED", run["state"]
        asked_of_watch = WatchParameters(**found["watch"]["parameters"]["parameters"])
        assert watch.watch(asked_of_watch, plain_steps)["outcome"] == "nothing_to_do"
        assert [each["id"] for each in runs_of(api, found["retrain"])] == [started["id"]]

        store = open_store(places["VISIONMILL_LOOP"])
        by_hand = decide_by_hand(api, found, store, places["VISIONMILL_LOOP"])

    [record] = tables.read(store, ROUNDS).to_pylist()
    pointer = read_pointer(store)[0]
    assert pointer.champion is not None and pointer.champion.model_id == record["champion_out"]
    assert [(move.action, move.approver) for move in pointer.moves[-2:]] == by_hand
    assert {row["role"] for row in tables.read(store, MODELS).to_pylist()} == {"teacher", "student", "baseline"}
    assert any(info.key.endswith(".html") for info in store.list("report/rounds/"))
