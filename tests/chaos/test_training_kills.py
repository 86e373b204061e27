"""Kill driver or workers of a whole round, in its inference and in its training: what was decided is decided again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.loop_parameters import RetrainParameters
from flows.retrain import run_retrain
from infra.problems import checked
from infra.store import Store, open_store
from tests.flows.tiny_loops import tiny_loop

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]


def start(asked: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.chaos.loop", json.dumps(asked)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def infers(store: Store) -> bool:
    return any("/_plans/" in info.key for info in store.list("inference/"))


def trains_the_student(store: Store) -> bool:
    """Its checkpoint is there, as long as it is not done."""
    keys = [info.key for info in store.list("training/runs/") if info.key.endswith("/checkpoint.safetensors")]
    runs = [json.loads(store.get(f"{key.rpartition('/')[0]}/run.json")) for key in keys]
    return any(run["recipe"]["name"] == "student" for run in runs)


def kill_when(asked: dict[str, Any], reached: Callable[[Store], bool]) -> None:
    Path(asked["output"]).mkdir(exist_ok=True)  # a folder can be looked into before anything is written
    process, store = start(asked), open_store(asked["output"])
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not reached(store):
        time.sleep(0.01)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -9, f"it ended before it could be killed: {errors[-2000:]}"


def workers_of(driver: subprocess.Popen[str], title: str) -> list[int]:
    """Pids below the driver that Ray runs an actor of this class in."""
    found = []
    for child in psutil.Process(driver.pid).children(recursive=True):
        try:
            if f"ray::{title}" in " ".join(child.cmdline()):
                found.append(child.pid)
        except psutil.Error:
            continue
    return found


def kill_a_worker(driver: subprocess.Popen[str], store: Store, reached: Callable[[Store], bool], title: str) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and driver.poll() is None:
        if reached(store) and (workers := workers_of(driver, title)):
            os.kill(workers[0], signal.SIGKILL)
            return
        time.sleep(0.02)
    raise AssertionError(f"no {title} was seen in time")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of a loop, and what comes of it when nobody dies."""
    asked = tiny_loop(tmp_path_factory.mktemp("undisturbed"))
    return asked, run_retrain(checked(RetrainParameters, **asked), orchestrated=False)


def assert_same_decisions(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["rounds"] == expected["rounds"], "same training set, same student, same verdict"
    assert found["rounds"][0]["train_set_id"] == expected["rounds"][0]["train_set_id"]
    assert found["champion"] == expected["champion"]


def test_a_round_whose_driver_was_killed_comes_to_the_same_training_set_and_champion(
    undisturbed: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    asked = {**undisturbed[0], "output": str(tmp_path / "loop")}
    for reached in (infers, trains_the_student):
        kill_when(asked, reached)
    assert_same_decisions(run_retrain(checked(RetrainParameters, **asked), orchestrated=False), undisturbed[1])


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_round_whose_workers_were_killed_comes_to_the_same_training_set_and_champion(
    undisturbed: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    asked = {**undisturbed[0], "output": str(tmp_path / "loop"), "ray": None}
    (tmp_path / "loop").mkdir()
    driver, store = start(asked), open_store(asked["output"])
    try:
        kill_a_worker(driver, store, infers, "RayWorker")
        kill_a_worker(driver, store, trains_the_student, "RayTrainWorker")
        said, errors = driver.communicate(timeout=300)
    finally:
        driver.kill()
    assert driver.returncode == 0, errors[-3000:]
    assert_same_decisions(json.loads(said.splitlines()[-1]), undisturbed[1])
