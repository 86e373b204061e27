"""Distillation: hand-computed numbers, a teacher that never changes, and a student that comes to agree with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modelkit import create_model
from modelkit.base import VisionModel
from modelkit.errors import ConfigError
from modelkit.training.distillation import DistillationConfig, Distiller, softened_divergence
from modelkit.training.loop import LoopConfig, Trainer
from tests.modelkit.builders import as_tensor, picture, rectangles, small_mask_rcnn

TEACHER, STUDENT = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])


@pytest.mark.parametrize(("temperature", "expected"), [(1, 0.119630), (2, 0.123963), (4, 0.119817)])
def test_golden_divergence(temperature: float, expected: float) -> None:
    assert float(softened_divergence(STUDENT, TEACHER, temperature)) == pytest.approx(expected, abs=1e-6)


def test_golden_softened_probabilities() -> None:
    assert (torch.tensor([5.0, 10.0]) / 100).softmax(0).tolist() == pytest.approx([0.4875, 0.5125], abs=1e-4)
    assert float(softened_divergence(TEACHER, TEACHER, 3.0)) == pytest.approx(0.0, abs=2e-6)


def test_rows_are_averaged_and_the_gradient_tends_to_the_difference_of_logits() -> None:
    five = softened_divergence(STUDENT.repeat(5, 1), TEACHER.repeat(5, 1), 4.0)
    assert float(five) == pytest.approx(0.119817, abs=1e-6)
    hot = STUDENT.clone().requires_grad_()
    softened_divergence(hot, TEACHER, 1000.0).backward()
    centred = (STUDENT - STUDENT.mean()) - (TEACHER - TEACHER.mean())
    assert torch.allclose(hot.grad, centred / 3, atol=1e-3)


def semantic(name: str = "lraspp_mobilenet_v3_large", classes: int = 3) -> VisionModel:
    torch.manual_seed(len(name))
    transform = {"min_size": 64, "max_size": 64, "padding": "none", "size_divisible": 1}
    return create_model(name, num_classes=classes, transform=transform)


def detector(width: int) -> VisionModel:
    torch.manual_seed(width)
    backbone = {"name": "slim_resnet", "widths": [width] * 4, "depths": [1, 1, 1, 1], "norm": "group"}
    return create_model("mask_rcnn", **small_mask_rcnn(backbone=backbone))


SCENE = as_tensor(picture(64, 64))
TARGET = rectangles(64, 64, [[4.0, 4.0, 30.0, 30.0], [34.0, 20.0, 60.0, 50.0]], [1, 2])


@pytest.mark.parametrize(
    ("make_teacher", "make_student", "name"),
    [(semantic, semantic, "loss_semantic"), (lambda: detector(32), lambda: detector(16), "loss_classifier")],
)
def test_the_teacher_stays_and_the_student_comes_to_agree(make_teacher, make_student, name: str) -> None:  # type: ignore[no-untyped-def]
    teacher, student = make_teacher(), make_student()
    distiller = Distiller(teacher, DistillationConfig(alpha=1.0, temperature=2.0))
    distiller.check(student)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    trail: list[float] = []

    def losses(step: int) -> dict[str, Tensor]:
        named = distiller(student, [SCENE, SCENE], [TARGET, TARGET])
        trail.append(float(named["loss_distillation"].detach()))
        assert float(named[name].detach()) == 0, "with alpha 1 the labels have no say in the class loss"
        return named

    Trainer(student, losses, LoopConfig(steps=12, learning_rate=2e-3, warmup_steps=1)).run()
    assert sum(trail[-3:]) < 0.7 * sum(trail[:3])
    assert all(torch.equal(value, teacher.state_dict()[key]) for key, value in before.items())
    assert all(p.grad is None for p in teacher.parameters())


def test_alpha_0_is_training_without_a_teacher() -> None:
    student, distiller = detector(16), Distiller(detector(32), DistillationConfig(alpha=0.0))
    torch.manual_seed(0)
    plain = student([SCENE], [TARGET])
    torch.manual_seed(0)
    named = distiller(student, [SCENE], [TARGET])
    assert float(named.pop("loss_distillation").detach()) == 0
    assert {key: float(value.detach()) for key, value in named.items()} == {
        key: float(value.detach()) * student.loss_weights[key] for key, value in plain.items()
    }


def test_alpha_weighs_the_teacher_against_the_labels_of_the_class_loss_alone() -> None:
    teacher, student = detector(32), detector(16)

    def named(alpha: float) -> dict[str, float]:
        torch.manual_seed(0)
        losses = Distiller(teacher, DistillationConfig(alpha=alpha))(student, [SCENE], [TARGET])
        return {name: float(value.detach()) for name, value in losses.items()}

    taught, labelled, both = named(1.0), named(0.0), named(0.25)
    assert taught["loss_distillation"] > 0
    assert both["loss_distillation"] == pytest.approx(0.25 * taught["loss_distillation"])
    assert both["loss_classifier"] == pytest.approx(0.75 * labelled["loss_classifier"])
    assert both["loss_mask"] == labelled["loss_mask"] == taught["loss_mask"]


def test_teachers_of_another_kind_or_other_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="one kind"):
        Distiller(semantic(), DistillationConfig()).check(detector(16))
    with pytest.raises(ConfigError, match="agree in classes, got 5 and 3"):
        Distiller(semantic(classes=5), DistillationConfig()).check(semantic())
    with pytest.raises(ConfigError, match="alpha"):
        DistillationConfig(alpha=1.5)
