"""Loops that must be refused, as whole rounds in which only training is replaced by weights that are there already.

The champion and the baseline are the shipped detector with its mask head disturbed, the student is the shipped detector
itself: its masks are better, and the gate opens. It stays shut when the labels that it is said to have learnt from are
bad.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import modelkit
from benchmarks.selftraining_controls import changed_steps, poisoned, shuffled, write_copies, write_on_their_heads
from flows import round_steps
from flows import rounds as round_flow
from flows.loop_parameters import RetrainParameters
from flows.retrain import run_retrain
from flows.steps import Steps, plain_steps
from infra.errors import UsageError
from infra.problems import checked
from infra.store import open_store
from modelkit import Predictor, Weights, save_weights
from modelkit.digitscape import Digitscape, SceneStyle, write_dataset
from tasks.labels.label_sets import LabelSet
from tasks.loop import candidates, judging, methods, rounds
from tasks.loop.schemas import VERDICTS
from tasks.output import tables
from tasks.product import Judgement
from tasks.training.job import TrainingJob

SIZE = (128, 128)
STYLE = SceneStyle(digits=(7, 10), size_px=(24.0, 48.0), empty_share=0.0, overlap=0.1)
AUDIT = "audit: lower bound of precision"


def disturb_masks(model: nn.Module) -> None:
    """Noise on the mask head: outlines get worse, classes and boxes stay."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "mask" in name:
            parameter += 0.35 * parameter.std() * torch.randn(parameter.shape, generator=generator)


def turn_classes(model: nn.Module) -> None:
    """What was called 0 is called 1, and so on, as of a model that was taught so; background stays."""
    for name, parameter in model.named_parameters():
        if "cls_score" in name:
            parameter[1:] = parameter[1:].roll(1, 0)
        elif "bbox_pred" in name:
            parameter[4:] = parameter[4:].roll(4, 0)
        elif "mask_fcn_logits" in name:
            parameter[1:] = parameter[1:].roll(1, 0)


class Loops:
    """Rounds on the same labels: what a model finds on C and G, and what it is worth there, is computed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        source = Digitscape("train", SIZE, seed=4, style=STYLE, dense=False)
        self.labelled = write_dataset(folder / "labelled", source, 74, image_format="png")
        self.audit = write_dataset(folder / "unlabelled", source, 24, first=500, image_format="png")
        self.weights = {
            "teacher": self.saved("teacher", disturb_masks),
            "student": self.saved("student", lambda model: None),
            "baseline": self.saved("baseline", disturb_masks),
        }
        self._known: dict[tuple[Any, ...], Any] = {}

    def saved(self, name: str, change: Callable[[nn.Module], None]) -> tuple[str, Weights]:
        """The shipped detector, changed, under a name."""
        predictor = modelkit.load("digitscape_mask_rcnn")
        with torch.no_grad():
            change(predictor.model)
        # A curve as training leaves it: pseudo-labels count no more than people's.
        lineage = {"history": [{"step": 1, "loss": 1.0, "unlabelled_loss": 0.5}]}
        record = save_weights(
            predictor.model, self.folder, name=name, classes=predictor.weights.classes, lineage=lineage
        )
        return str(self.folder / f"{name}.safetensors"), record

    def carry_out(self, job: TrainingJob, *_: Any) -> Any:
        """In place of training."""
        return self.weights[job.recipe.name]

    def candidates_on(self, predictor: Predictor, labels: LabelSet, *rest: Any) -> Any:
        """As the loop's own, once for a model and some images."""
        key = ("candidates", predictor.weights.digest, tuple(labels.table["image_id"].to_pylist()))
        if key not in self._known:
            self._known[key] = candidates.candidates_on(predictor, labels, *rest)
        return self._known[key]

    def judge_on_gate(self, methods: Any, predictor: Predictor, *rest: Any) -> Any:
        """As the loop's own, once for a model."""
        key = ("gate", predictor.weights.digest)
        if key not in self._known:
            self._known[key] = judging.judge_on_gate(methods, predictor, *rest)
        return self._known[key]

    def difference(self, candidate: Judgement, other: Judgement, gate: LabelSet, *, seed: int) -> Any:
        """As the loop's own, once for two models."""
        key = ("difference", id(candidate), id(other))  # judge_on_gate keeps them alive
        if key not in self._known:
            self._known[key] = judging.difference(candidate, other, gate, seed=seed)
        return self._known[key]

    def parameters(self, name: str, **changes: str) -> RetrainParameters:
        asked = {
            "task": "instance",  # the digits have points, too
            "labelled": str(self.labelled),
            "unlabelled": str(self.folder / "unlabelled" / "images"),
            "audit": str(self.audit),
            "output": str(self.folder / name),
            "shares": {"train": 0.38, "calibration": 0.46, "gate": 0.16},
            "group_rule": "[^/]+$",  # by the file's name, without the folder, which is another one in every run
            "ray": "none",
        }
        return checked(RetrainParameters, **{**asked, **changes})

    def outcome(self, name: str, step: Steps = plain_steps, **changes: str) -> dict[str, Any]:
        """What the loop says of its only round."""

        def quick(title: str, function: Any, *args: Any, **kwargs: Any) -> Any:
            told = title.endswith((": compare models", ": write report"))  # what people are told is another matter
            return None if told else step(title, function, *args, **kwargs)

        [outcome] = run_retrain(self.parameters(name, **changes), orchestrated=False, step=quick)["rounds"]
        return dict(outcome)

    def failing(self, name: str, step: Steps = plain_steps, **changes: str) -> dict[str, float | None]:
        """The criteria of the gate that do not hold, with their values."""
        self.outcome(name, step, **changes)
        rows = tables.read(open_store(str(self.folder / name)), VERDICTS).to_pylist()
        return {row["criterion"]: row["value"] for row in rows if row["round"] == 1 and not row["passed"]}


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = Loops(tmp_path_factory.mktemp("controls"))
    with pytest.MonkeyPatch.context() as patch:
        for module in (round_steps, round_flow):
            patch.setattr(module, "carry_out", made.carry_out)
        patch.setattr(rounds, "judge_on_gate", made.judge_on_gate)
        patch.setattr(rounds, "difference", made.difference)
        patch.setattr(methods, "WATCHED_OBJECTS", 5)  # as many as a class has in so small a gate set
        for module in (rounds, judging):
            patch.setattr(module, "candidates_on", made.candidates_on)
        yield made


def test_the_gate_opens_for_good_labels_and_not_for_the_same_ones_shuffled(loops: Loops) -> None:
    assert loops.failing("clean") == {}
    shutil.copytree(loops.folder / "clean" / "inference", loops.folder / "shuffled" / "inference")
    assert AUDIT in loops.failing("shuffled", changed_steps({": select": shuffled}))


def test_unlabelled_images_of_another_domain_are_refused(loops: Loops, tmp_path: Path) -> None:
    flipped = write_on_their_heads(loops.audit, 14, tmp_path)
    failing = loops.failing("domain", unlabelled=str(tmp_path / "images"), audit=str(flipped))
    assert AUDIT in failing


def test_a_teacher_of_poisoned_labels_labels_nothing(loops: Loops, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the next class, as it was taught; C, which it never saw, says otherwise, so no class is certified."""
    monkeypatch.setitem(loops.weights, "teacher", loops.saved("poisoned", turn_classes))
    outcome = loops.outcome("poisoned", changed_steps({"divide data": poisoned}))
    assert outcome["candidate"] is None and sum(outcome["accepted"].values()) == 0 and not outcome["gate"]["passed"]


def test_copies_of_labelled_images_are_no_unlabelled_ones(loops: Loops, tmp_path: Path) -> None:
    names = [image["file_name"] for image in json.loads(loops.labelled.read_text())["images"]]
    write_copies(loops.labelled, names, tmp_path / "copies")
    with pytest.raises(UsageError, match="leaves nothing for unlabelled"):
        run_retrain(loops.parameters("copies", unlabelled=str(tmp_path / "copies")), orchestrated=False)


def test_labels_that_no_person_has_seen_are_refused(loops: Loops, tmp_path: Path) -> None:
    content = json.loads(loops.labelled.read_text())
    for each in content["images"]:
        each["file_name"] = str(loops.labelled.parent / each["file_name"])
    for each in content["annotations"]:
        each["source"] = "model"
    machine = tmp_path / "machine.json"
    machine.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="made or corrected by a person"):
        run_retrain(loops.parameters("machine", labelled=str(machine)), orchestrated=False)
