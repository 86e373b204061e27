"""Schedules: a scheduled run really fires on a worker, the next one finds nothing to do; triggers by CLI and API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from infra import services
from infra.store import open_store
from tasks.output.runs import list_runs, read_run
from tests.flows.command import DIGITS
from tests.flows.deployments import prefect_client
from tests.flows.scenes import write_scenes

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(420)]
ROOT = Path(__file__).parents[2]
INTERVAL_S = 6  # less than a run takes: what would overlap is cancelled, so the next run starts when one has ended
DEADLINE_S = 300


@dataclass(frozen=True)
class Deployed:
    """The repository's deployment, with a short interval instead of its cron."""

    api: httpx.Client
    id: str
    source: Path
    output: Path

    def runs(self) -> list[dict[str, Any]]:
        """Its flow runs that started, oldest first."""
        query = {"deployments": {"id": {"any_": [self.id]}}, "sort": "START_TIME_ASC", "limit": 50}
        return [run for run in self.api.post("/flow_runs/filter", json=query).json() if run["start_time"]]

    def wait(self, done: int) -> list[dict[str, Any]]:
        """Until so many runs are completed."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            completed = [run for run in self.runs() if run["state_type"] == "COMPLETED"]
            if len(completed) >= done:
                return completed
            broken = [run for run in self.runs() if run["state_type"] in ("FAILED", "CRASHED")]
            assert not broken, broken[0]["state"]
            time.sleep(0.3)
        raise AssertionError(f"{done} completed runs expected, saw {[run['state_name'] for run in self.runs()]}")


@pytest.fixture(scope="module")
def deployed(prefect_api: str, services_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    tmp_path = tmp_path_factory.mktemp("deployed")
    source, output = tmp_path / "scenes", tmp_path / "results"
    write_scenes(source, 3)
    content = yaml.safe_load((ROOT / "infra" / "prefect.yaml").read_text())
    spec = content["deployments"][0]
    content["deployments"] = [spec]
    spec["name"] = f"test-{tmp_path.name}"
    spec["schedules"] = [{"slug": "often", "interval": INTERVAL_S, "active": True}]
    spec["parameters"]["parameters"] |= {"model": DIGITS[1], "ray": "none", "report": False, "compile": "off"}
    services.ensure_worker(state_dir=services_dir)
    prefect_file = tmp_path / "prefect.yaml"
    prefect_file.write_text(yaml.safe_dump(content))
    environment = os.environ | {
        "VISIONMILL_HOME": str(ROOT),
        "VISIONMILL_SOURCE": str(source),
        "VISIONMILL_OUTPUT": str(output),
    }
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(prefect_file)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=120)
    with prefect_client(prefect_api) as api:
        found = api.get(f"/deployments/name/segment-dataset/{spec['name']}")
        yield Deployed(api, found.raise_for_status().json()["id"], source, output)
        api.delete(f"/deployments/{found.json()['id']}")


def test_scheduled_run_fires_and_the_next_one_finds_nothing_to_do(deployed: Deployed) -> None:
    runs = deployed.wait(done=2)
    assert all(run["auto_scheduled"] for run in runs)
    store = open_store(str(deployed.output))
    records = [read_run(store, run) for run in list_runs(store)]
    assert [record.items.get("ok") for record in records] == [3], "one run did the work, the others wrote nothing"
    parts = [entry.key for entry in store.list("segments/")]
    write_scenes(deployed.source, 4)  # one more object arrives, maybe just too late for the run that is under way
    while len(list_runs(store)) == len(records):
        runs = deployed.wait(done=len(runs) + 1)
    later = [entry.key for entry in store.list("segments/")]
    assert len(later) == len(parts) + 1


def test_trigger_by_api_refuses_nonsense_and_secrets_before_anything_is_stored(deployed: Deployed) -> None:
    def trigger(**parameters: str) -> httpx.Response:
        body = {"parameters": {"parameters": parameters}, "idempotency_key": json.dumps(parameters)}
        return deployed.api.post(f"/deployments/{deployed.id}/create_flow_run", json=body)

    output = str(deployed.output)
    assert trigger(source="s3://key:secret@bucket/x", output=output).status_code == 409
    assert trigger(source="", output=output).status_code == 409
    first, second = (trigger(source=str(deployed.source), output=output, ray="none", compile="off") for _ in range(2))
    assert first.status_code in (200, 201)
    assert first.json()["id"] == second.json()["id"], "the idempotency key makes a repeated event harmless"
