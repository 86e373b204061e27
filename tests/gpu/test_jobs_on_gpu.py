"""Jobs, training and a whole loop on a GPU, by real Ray workers that hold it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flows import retrain
from flows.loop_parameters import RetrainParameters
from flows.steps import plain_steps
from infra import doctor
from infra.problems import checked
from infra.ray_session import RaySession
from modelkit.training.processes import Rank
from modelkit.training.student import UnlabelledSchedule
from tasks.engine.batches import is_device_lost
from tasks.training.job import TrainingJob, prepare_training
from tasks.training.run import train_here, train_on_ray
from tasks.training.work import train_share
from tests.flows.command import DIGITS, ask, segment, visionmill
from tests.flows.scenes import write_scenes
from tests.flows.tiny_loops import tiny_loop
from tests.tasks.training.scenes import recipe, semantic_recipe
from tests.tasks.training.test_runs import job_in, tensors_of
from tests.videos import make_video

ON_RAY = ("--no-prefect", "--no-report", "--compile", "off", "--score-threshold", "0.3", "--json", *DIGITS)
ITEMS = "SELECT uri, media, frame, labels, scores, boxes_xyxy FROM items WHERE status = 'ok' ORDER BY uri, frame"


def assert_same_results(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same objects, but for what TF32 does to the last digits."""
    assert [(row["uri"], row["frame"]) for row in found] == [(row["uri"], row["frame"]) for row in expected]
    pairs = list(zip(found, expected, strict=True))
    alike = [(a, b) for a, b in pairs if a["labels"] == b["labels"]]
    assert len(alike) >= 0.9 * len(pairs), "scores near the threshold may fall on either side, now and then"
    for a, b in alike:
        for one, other in zip(a["boxes_xyxy"], b["boxes_xyxy"], strict=True):
            assert max(abs(x - y) for x, y in zip(one, other, strict=True)) < 1.5


@pytest.mark.ray
@pytest.mark.parametrize(("workers", "gpus"), [("1", "1"), ("2", "0.5")])
def test_workers_that_hold_a_gpu_or_share_one_find_what_a_processor_finds(
    local_ray: RaySession, tmp_path: Path, workers: str, gpus: str
) -> None:
    source = tmp_path / "source"
    write_scenes(source, 40)
    (source / "clip.mp4").write_bytes(make_video("mp4", "libx264", frames=5, size_hw=(96, 128)))
    (source / "broken.jpg").write_bytes(b"no picture")
    segment(source, tmp_path / "cpu", "--score-threshold", "0.3")
    said = visionmill(
        "segment", source, tmp_path / "gpu", *ON_RAY, "--gpus-per-worker", gpus, "--workers", workers,
        "--shard-items", "12",
    ).summary  # fmt: skip
    assert said["items"]["ok"] == 45
    assert visionmill("verify", tmp_path / "gpu", "--deep", "--json").summary["problems"] == []
    assert_same_results(ask(tmp_path / "gpu", ITEMS), ask(tmp_path / "cpu", ITEMS))


def on_gpu(job: TrainingJob) -> TrainingJob:
    return prepare_training(
        job.output_uri, job.recipe, job.labelled_set, job.unlabelled_set, num_workers=1, use_gpu=True
    )


@pytest.mark.parametrize("plan", [recipe, semantic_recipe], ids=["instance", "semantic"])
def test_training_on_a_gpu_learns_as_on_a_processor_and_goes_on_where_it_was_stopped(plan: Any, tmp_path: Path) -> None:
    schedule = UnlabelledSchedule(burn_in=0.1, ramp=0.1)
    expected, record = train_here(job_in(str(tmp_path / "cpu"), plan(schedule=schedule), with_pseudo=True))
    job = on_gpu(job_in(str(tmp_path / "gpu"), plan(schedule=schedule), with_pseudo=True))
    train_share(job, Rank(), until=3)
    torch.cuda.manual_seed(1)
    uri, found = train_here(job)
    assert found.lineage["steps"] == record.lineage["steps"] and found.lineage["skipped_steps"] == 0
    assert found.lineage["history"][0]["norm"] == pytest.approx(record.lineage["history"][0]["norm"], rel=0.2)
    ours, theirs = tensors_of(uri), tensors_of(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.isfinite(value).all() for value in ours.values() if value.is_floating_point())


@pytest.mark.ray
def test_ray_train_gives_its_worker_the_gpu(local_ray: RaySession, tmp_path: Path) -> None:
    job = on_gpu(job_in(str(tmp_path / "out"), recipe(), with_pseudo=True))
    uri, record = train_on_ray(job, local_ray)
    assert record.lineage["steps"] == 8
    assert tensors_of(uri)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_whole_round_of_the_loop_runs_on_a_gpu(tmp_path: Path) -> None:
    asked = {**tiny_loop(tmp_path), "ray": None, "gpus": True}
    [outcome] = retrain._retrain(checked(RetrainParameters, **asked), plain_steps, None)["rounds"]
    assert sum(outcome["accepted"].values()) > 0
    assert outcome["gate"]["passed"] or outcome["gate"]["reasons"]


def test_a_broken_context_is_told_from_other_errors() -> None:
    script = """
import json, torch
caught = []
for _ in range(2):
    try:
        torch.zeros(4, device="cuda")[torch.tensor([7], device="cuda")].cpu()
    except Exception as error:
        caught.append(f"{type(error).__name__}|{error}")
print(json.dumps(caught))
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    caught = json.loads(said.stdout.splitlines()[-1])
    assert len(caught) == 2, "the second call fails because the first broke the context"
    for text in caught:
        assert is_device_lost(RuntimeError(text.partition("|")[2])), text


def test_the_doctor_names_the_gpu() -> None:
    [check] = [check for check in doctor._torch() if check.name == "gpu"]
    assert check.ok
    assert torch.cuda.get_device_name(0) in check.detail
