"""Kill the driver of a whole round, in its inference and in its training: what was decided is decided again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.parameters import RetrainParameters, checked
from flows.retrain import run_retrain
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


def test_a_round_whose_driver_was_killed_comes_to_the_same_training_set_and_champion(tmp_path: Path) -> None:
    asked = tiny_loop(tmp_path)
    undisturbed = {**asked, "output": str(tmp_path / "undisturbed")}
    expected = run_retrain(checked(RetrainParameters, **undisturbed), orchestrated=False)
    for reached in (infers, trains_the_student):
        kill_when(asked, reached)
    found = run_retrain(checked(RetrainParameters, **asked), orchestrated=False)
    assert found["rounds"] == expected["rounds"], "same training set, same student, same verdict"
    assert found["rounds"][0]["train_set_id"] == expected["rounds"][0]["train_set_id"]
    assert found["champion"] == expected["champion"]
