"""The repository's deployments of loop, watch and champion, under names of a test and without their schedules."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect.client.base import PrefectHttpxSyncClient

ROOT = Path(__file__).parents[2]
FLOWS = {
    "retrain": "retrain-model",
    "watch": "watch-for-retraining",
    "promote": "promote-model",
    "rollback": "rollback-model",
}


@contextmanager
def prefect_client(url: str) -> Iterator[httpx.Client]:
    """Prefect's REST API with the session's credentials.

    The client is Prefect's own, for it asks again when the server answers 503 because its SQLite is busy with events.
    """
    user, _, password = os.environ["PREFECT_API_AUTH_STRING"].partition(":")
    with PrefectHttpxSyncClient(base_url=url, auth=(user, password), timeout=30, raise_on_all_errors=False) as client:
        yield client


@contextmanager
def deploying(api: httpx.Client, folder: Path, pool: str) -> Iterator[Callable[..., dict[str, Any]]]:
    """A function that deploys all of them and tells what Prefect knows of them; they are gone at the end.

    It takes the environment that ``infra/prefect.yaml`` names its places by, and further parameters of the loop.
    """
    made: list[str] = []

    def deploy(places: dict[str, str], **loop: Any) -> dict[str, Any]:
        content = yaml.safe_load((ROOT / "infra" / "prefect.yaml").read_text())
        specs = {spec["name"]: spec for spec in content["deployments"] if spec["name"] in FLOWS}
        for name, spec in specs.items():
            spec |= {"name": f"{name}-{folder.name}", "schedules": [], "work_pool": {"name": pool}}
        watching = specs["watch"]["parameters"]["parameters"]
        watching["deployment"] = f"{FLOWS['retrain']}/{specs['retrain']['name']}"
        for asked in (specs["retrain"]["parameters"]["parameters"], watching["retrain"]):
            asked |= loop
        file = folder / "prefect.yaml"
        file.write_text(yaml.safe_dump({**content, "deployments": list(specs.values())}))
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
        environment = os.environ | {"VISIONMILL_HOME": str(ROOT)} | places
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=120)
        found = {}
        for name, flow in FLOWS.items():
            found[name] = api.get(f"/deployments/name/{flow}/{specs[name]['name']}").raise_for_status().json()
            made.append(found[name]["id"])
        return found

    yield deploy
    for each in made:
        api.delete(f"/deployments/{each}")


def runs_of(api: httpx.Client, deployment: dict[str, Any]) -> list[dict[str, Any]]:
    """The flow runs of a deployment, whatever became of them."""
    query = {"deployments": {"id": {"any_": [deployment["id"]]}}}
    return list(api.post("/flow_runs/filter", json=query).raise_for_status().json())
