"""Whole training runs in this process: resumed ones equal unbroken ones, and what they leave can be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

import modelkit
from infra.errors import UsageError
from infra.store import open_store
from modelkit import ClassInfo
from modelkit.training.distillation import DistillationConfig
from modelkit.training.processes import Rank
from modelkit.training.student import UnlabelledSchedule
from modelkit.training.transfer import imagenet_state
from tasks.engine.model_source import local_model
from tasks.training.examples import save_training_set
from tasks.training.job import TrainingJob, prepare_training
from tasks.training.layout import checkpoint_key
from tasks.training.presets import make_recipe
from tasks.training.recipe import TrainingRecipe
from tasks.training.run import train_here
from tasks.training.work import build_model, train_share
from tests.tasks.training.scenes import panoptic_recipe, pseudo, put_examples, recipe, semantic_recipe


def job_in(uri: str, plan: TrainingRecipe, *, with_pseudo: bool = False) -> TrainingJob:
    store = open_store(uri)
    labelled = save_training_set(store, put_examples(store, 4))
    unlabelled = save_training_set(store, pseudo(put_examples(store, 4, first=20))) if with_pseudo else None
    return prepare_training(uri, plan, labelled, unlabelled)


def tensors_of(uri: str) -> dict[str, torch.Tensor]:
    return load(Path(local_model(uri)).read_bytes())


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONMILL_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("plan_of", [recipe, panoptic_recipe], ids=["instance", "panoptic"])
def test_stopped_anywhere_and_resumed_from_the_store_equals_not_stopped(
    plan_of: Callable[..., TrainingRecipe], store_uri: str, tmp_path: Path
) -> None:
    plan = plan_of(schedule=UnlabelledSchedule(burn_in=0.1, ramp=0.1))
    whole_job = job_in(str(tmp_path / "whole"), plan, with_pseudo=True)
    whole, _ = train_here(whole_job)
    job = job_in(store_uri, plan, with_pseudo=True)
    for stop in (3, 4):
        train_share(job, Rank(), until=stop)
        torch.manual_seed(1)
        assert open_store(store_uri).info(checkpoint_key(job.fingerprint)).size_bytes > 0
    uri, record = train_here(job)
    expected, found = tensors_of(whole), tensors_of(uri)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert record.lineage["steps"] == 8 and record.lineage["skipped_steps"] == 0
    assert record.lineage["unlabelled_set"] == job.unlabelled_set
    assert any(name.startswith("unlabelled_") for name in record.lineage["history"][4])
    keys = [info.key for info in open_store(store_uri).list(f"training/runs/{job.fingerprint}/")]
    assert not [key for key in keys if "checkpoint" in key], "a finished run keeps no checkpoint"
    assert train_here(job) == (uri, record), "a finished run is left alone"


def test_what_a_run_leaves_is_a_model_like_any_other(tmp_path: Path) -> None:
    job = job_in(str(tmp_path / "out"), semantic_recipe())
    uri, record = train_here(job)
    predictor = modelkit.load(local_model(uri))
    assert predictor.weights.digest == record.digest
    assert predictor.weights.class_names()[3] == "2"
    assert predictor([torch.zeros((40, 50, 3), dtype=torch.uint8).numpy()])[0].size_hw == (40, 50)
    assert record.lineage["kind"] == "trained" and record.lineage["labelled_set"] == job.labelled_set


def test_transfer_freezes_the_backbone_and_starts_a_head_for_other_classes_anew(tmp_path: Path) -> None:
    first, _ = train_here(job_in(str(tmp_path / "one"), recipe()))
    classes = tuple((k, str(k), True) for k in range(1, 13))
    config = {**recipe().config, "num_classes": 13}
    plan = recipe(
        name="moved", config=config, classes=classes, initial=first, frozen=("backbone",), rate_scales={"neck": 0.1}
    )
    job = job_in(str(tmp_path / "two"), plan)
    assert job.recipe.initial_digest is not None
    _, adopted = build_model(job)
    assert adopted is not None
    assert {name.split(".")[1] for name in adopted.new if name.startswith("roi_heads")} == {"box", "mask"}
    assert all("predictor" in name for name in adopted.new)
    uri, record = train_here(job)
    before, after = tensors_of(first), tensors_of(uri)
    same = {name for name in before.keys() & after.keys() if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("backbone.")} <= same
    assert not {name for name in same if name.startswith("neck.") and name.endswith("weight")}
    assert record.lineage["kind"] == "transferred" and record.lineage["initial"]["new"]
    assert sum(record.lineage["initial"]["parts"].values()) == record.lineage["initial"]["matched"]


def test_what_begins_at_random_is_learnt_although_the_recipe_freezes_it(tmp_path: Path) -> None:
    job = job_in(str(tmp_path), recipe(frozen=("backbone",)))
    model, _ = build_model(job)
    uri, _ = train_here(job)
    moved = [name for name, value in tensors_of(uri).items() if not torch.equal(value, model.state_dict()[name])]
    assert any(name.startswith("backbone.") for name in moved)


def test_a_panoptic_model_takes_a_detector_over_as_the_detector_inside(tmp_path: Path) -> None:
    detector, _ = train_here(job_in(str(tmp_path / "one"), recipe()))
    job = job_in(str(tmp_path / "two"), panoptic_recipe(initial=detector))
    model, adopted = build_model(job)
    assert adopted is not None and not adopted.unused
    assert {name.partition(".")[0] for name in adopted.new} == {"semantic"}
    tensors = tensors_of(detector)
    assert all(torch.equal(value, tensors[name]) for name, value in model.detector.state_dict().items())
    _, whole = build_model(job_in(str(tmp_path / "three"), panoptic_recipe(initial=train_here(job)[0])))
    assert whole is not None and not whole.new, "weights of a panoptic model are taken over as they are"


def test_distillation_trains_a_smaller_student(tmp_path: Path) -> None:
    teacher, _ = train_here(job_in(str(tmp_path / "one"), recipe()))
    narrow = {"name": "slim_resnet", "widths": [16] * 4, "depths": [1] * 4, "norm": "group"}
    plan = recipe(
        name="student",
        config={**recipe().config, "backbone": narrow},
        teacher=teacher,
        distillation=DistillationConfig(alpha=0.7, temperature=2.0),
    )
    _, record = train_here(job_in(str(tmp_path / "two"), plan))
    assert record.lineage["kind"] == "distilled"
    assert record.lineage["history"][-1]["loss_distillation"] > 0
    assert record.num_parameters < modelkit.describe(local_model(teacher)).num_parameters


def test_what_cannot_be_trained_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such model"):
        prepare_training(str(tmp_path), dataclasses.replace(recipe(), initial="no such model"), "0" * 64)
    with pytest.raises(UsageError):
        prepare_training(str(tmp_path), dataclasses.replace(recipe(), architecture="nonesuch"), "0" * 64)
    with pytest.raises(UsageError, match=r"things are \[2\] and stuff \[1\]"):
        make_recipe("panoptic_fpn", [ClassInfo(1, "sky", is_thing=False), ClassInfo(2, "car")], steps=1, seed=0)


def test_a_model_begins_from_what_imagenet_taught_its_backbone(tmp_path: Path) -> None:
    config = {
        "num_classes": 11,
        "backbone": {"name": "efficientnet_lite0", "out": ["c2", "c4"]},
        "head": {"channels": 16, "low_channels": 8},
        "transform": {"min_size": 64, "max_size": 64, "padding": "none", "size_divisible": 1},
    }
    plan = recipe(architecture="deeplabv3plus", config=config)
    fresh = job_in(str(tmp_path / "fresh"), plan)
    job = job_in(str(tmp_path / "taught"), dataclasses.replace(plan, initial="imagenet"))
    assert job.fingerprint != fresh.fingerprint
    model, adopted = build_model(job)
    taught = imagenet_state(model)
    assert adopted is not None and set(adopted.matched) == set(taught)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in taught.items())
    with pytest.raises(
        UsageError, match=r"--from imagenet: there are no ImageNet weights for this model \(FPN, SlimResNet"
    ):
        job_in(str(tmp_path / "none"), recipe(initial="imagenet"))
