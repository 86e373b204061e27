"""Training on a real Ray, with real deaths: the weights are those of an undisturbed run in this process."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from infra.errors import ServiceError
from infra.ray_session import RaySession
from infra.store import open_store
from tasks.training.job import TrainingJob, prepare_training
from tasks.training.layout import checkpoint_key
from tasks.training.run import train_here, train_on_ray
from tests.tasks.training.scenes import recipe
from tests.tasks.training.test_runs import caches, job_in, tensors_of

pytestmark = [pytest.mark.ray]
__all__ = ["caches"]  # the fixture


def expected_tensors(folder: Path, steps: int) -> dict[str, torch.Tensor]:
    uri, _ = train_here(job_in(str(folder), recipe(loop=loop_of(steps)), with_pseudo=True))
    return tensors_of(uri)


def loop_of(steps: int):  # type: ignore[no-untyped-def]
    return dataclasses.replace(recipe().loop, steps=steps)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]


def children_training() -> list[psutil.Process]:
    """Ray's train workers below this process."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.mark.chaos
def test_a_worker_killed_in_the_middle_costs_steps_and_no_bit(local_ray: RaySession, tmp_path: Path) -> None:
    steps = 30
    expected = expected_tensors(tmp_path / "expected", steps)
    job = job_in(str(tmp_path / "out"), recipe(loop=loop_of(steps)), with_pseudo=True)
    store, killed = open_store(str(tmp_path / "out")), []

    def kill() -> None:
        while not any(info.key == checkpoint_key(job.fingerprint) for info in store.list("training/runs/")):
            time.sleep(0.05)
        for process in children_training():
            os.kill(process.pid, signal.SIGKILL)
            killed.append(process.pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    uri, record = train_on_ray(job, local_ray)
    killer.join(timeout=5)
    assert killed, "nobody was killed"
    assert_same(tensors_of(uri), expected)
    assert record.lineage["steps"] == steps


def listening() -> set[tuple[str, int]]:
    """Addresses on which this process and all below it listen."""
    found = set()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            found |= {tuple(c.laddr) for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue
    return found


def test_two_workers_learn_together_and_nothing_listens_beyond_loopback(local_ray: RaySession, tmp_path: Path) -> None:
    steps, heard = 6, set()
    single = job_in(str(tmp_path), recipe(loop=loop_of(steps)))
    job = prepare_training(str(tmp_path), single.recipe, single.labelled_set, num_workers=2)
    assert job.fingerprint != single.fingerprint, "the number of workers changes the batches"
    stop = threading.Event()

    def listen() -> None:
        while not stop.wait(0.2):
            heard.update(listening())

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        _, record = train_on_ray(job, local_ray)
    finally:
        stop.set()
        listener.join(timeout=5)
    assert record.lineage["labelled_images"] == steps * 2 * 2
    assert {address for address, _ in heard} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, heard


def test_too_few_processors_are_refused_at_once(local_ray: RaySession, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="64 workers"):
        train_on_ray(TrainingJob(recipe(), str(tmp_path), "0" * 64, num_workers=64), local_ray)
