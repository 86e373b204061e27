"""Kill a training process at a random moment and start it again: the weights are those of an undisturbed run."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.store import open_store
from modelkit.training.checkpoint import decode_checkpoint
from tasks.training.examples import save_training_set
from tasks.training.run import train_here
from tests.tasks.training.scenes import put_examples, recipe
from tests.tasks.training.test_ray_training import assert_same, loop_of
from tests.tasks.training.test_runs import caches, job_in, tensors_of

pytestmark = pytest.mark.chaos
__all__ = ["caches"]  # the fixture

ROOT = Path(__file__).parents[2]
STEPS = 40


def step_reached(output: str) -> int:
    store = open_store(output)
    keys = [info.key for info in store.list("training/runs/") if info.key.endswith("checkpoint.safetensors")]
    return int(decode_checkpoint(store.get(keys[0]), keys[0]).numbers["step"]) if keys else 0


def test_a_killed_trainer_leaves_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    expected, _ = train_here(job_in(str(tmp_path / "expected"), recipe(loop=loop_of(STEPS))))
    output = str(tmp_path / "out")
    labelled = save_training_set(open_store(output), put_examples(open_store(output), 4))
    command = [sys.executable, "-m", "tests.chaos.trainer", output, labelled, str(STEPS)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not step_reached(output) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(random.Random(5).uniform(0, 0.3))
    process.kill()
    process.communicate()
    assert process.returncode == -9, "it was done before it could be killed"
    assert 0 < step_reached(output) < STEPS
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same(tensors_of(done.stdout.strip()), tensors_of(expected))
