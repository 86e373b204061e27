"""A kind of model in a page: it says which of its classes an image is, by the mean colour.

An image is of the class of its first labelled object. What is found goes to the product `segments`, as one box that
covers the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit import ClassInfo, Instances, Predictor, VisionModel, register_model
from modelkit.carriers.fields import Value
from modelkit.carriers.targets import register_field
from modelkit.transform import Geometry, ImageTransform
from tasks.evaluation.evaluate import predictions
from tasks.evaluation.suspects import doubts, folds_of
from tasks.labels.label_sets import LabelSet
from tasks.product import Judgement, Kind, Resampled, Suspect, Suspects, register_kind
from tasks.training.examples import Example
from tests.toys.dominant_colour_loop import LOOP

NAME = "dominant_colour"


@dataclass(frozen=True, slots=True)
class Guess:
    """A class for an image, and how sure that is."""

    size_hw: tuple[int, int]
    label: int
    score: float

    def cpu(self) -> Guess:
        return self

    def finish(self, min_score: float = 0.0) -> Instances:
        n, (height, width) = int(self.score >= min_score), self.size_hw
        box = np.array([[0, 0, width, height]], np.float32)
        scores, labels = np.array([self.score], np.float32), np.array([self.label], np.int32)
        return Instances(self.size_hw, box[:n], scores[:n], labels[:n], None, np.ones(n, bool))


class ColourModel(VisionModel):
    """Logistic regression on the mean of each channel."""

    def __init__(self, num_classes: int, transform: Mapping[str, Any]) -> None:
        super().__init__()
        self.num_classes, self.transform = num_classes, ImageTransform.from_config(transform)
        self.layer, self.loss_weights = nn.Linear(3, num_classes), {"loss_class": 1.0}

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        batch, _ = self.transform.batch(images)
        wanted = torch.stack([target["image_class"] for target in targets or ()])
        return {"loss_class": F.cross_entropy(self.dense(batch)["logits"], wanted)}

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layer(batch.mean((2, 3)))}

    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[Guess]:
        scores, labels = raw["logits"].float()[:, 1:].softmax(1).max(1)
        guesses = zip(geometries, (labels + 1).tolist(), scores.tolist(), strict=True)
        return [Guess(each.source_hw, label, score) for each, label, score in guesses]


def colour_model(
    *, num_classes: int = 4, transform: Mapping[str, Any] = ImageTransform(min_size=16, max_size=32).to_config()
) -> ColourModel:
    return ColourModel(num_classes, transform)


def target(example: Example) -> dict[str, Any]:
    return {"image_class": torch.tensor(example.objects[0].label)}


def judge(predictor: Predictor, labels: LabelSet) -> Judgement:
    """The share of images whose class is found."""
    rows = labels.table.to_pylist()
    answers = [each for _, each in predictions(predictor, rows)]
    found = [each.labels.tolist() for each in answers]
    truth = np.array([row["labels"][0] for row in rows])
    right = np.array([answer[:1] == [label] for answer, label in zip(found, truth, strict=True)])
    of_class = np.array([truth == each.id for each in labels.classes])
    everything = resample(right, of_class, np.ones((1, len(rows))))
    names = [each.name for each in labels.classes]
    figures = {
        "accuracy": float(everything.overall[0]),
        "by_class": dict(zip(names, everything.by_class[0].tolist(), strict=True)),
    }
    ids = tuple(row["image_id"] for row in rows)
    resampled = partial(resample, right, of_class)
    evidence = Answers(labels, answers, predictor.weights.class_names())
    return Judgement(NAME, {"image": figures}, ids, tuple(names), len(rows), resampled, evidence=evidence)


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model says of each image of a label set."""

    labels: LabelSet
    found: Sequence[Instances]
    names: Mapping[int, str]


def suspects(answers: Answers) -> Suspects:
    """Images of another class than the model says."""
    rows = answers.labels.table.to_pylist()
    sure = np.array([each.scores.max() for each in answers.found], np.float64)
    agrees = np.array([row["labels"][0] == int(each.labels[0]) for row, each in zip(rows, answers.found, strict=True)])
    doubted = doubts(sure, agrees.astype(float), (1.0,), folds_of(answers.labels))
    found = [
        Suspect(
            row["image_id"], row["uri"], None, 0, row["origin_ids"][0], row["names"][0], "wrong colour",
            f"the model says {answers.names[int(each.labels[0])]}", value, tuple(row["boxes_xyxy"][0]), {},
        )
        for row, each, value in zip(rows, answers.found, doubted.tolist(), strict=True) if value
    ]  # fmt: skip
    return Suspects(tuple(sorted(found, key=lambda each: -each.probability)), ())


def resample(right: np.ndarray, of_class: np.ndarray, weights: np.ndarray) -> Resampled:
    """right (images,), of_class (classes, images), weights (b, images)."""
    counts = weights @ of_class.T
    by_class = np.divide(weights @ (of_class & right).T, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    return Resampled(weights @ right / weights.sum(1), by_class, np.zeros((len(weights), 0)))


def recipe(classes: Sequence[ClassInfo]) -> Mapping[str, Any]:
    """A rate that suits four numbers."""
    return {"architecture": NAME, "loop": {"learning_rate": 0.1, "warmup_steps": 1}, "batch_size": 6}


def target_of(model: VisionModel) -> Callable[[Example], dict[str, Any]]:
    return target


KIND = Kind(
    name=NAME,
    product="segments",
    target_of=target_of,
    judge=judge,
    recipes={"toy_colour": recipe},
    default_recipe="toy_colour",
    class_counts=lambda classes: {"num_classes": max(each.id for each in classes) + 1},
    suspects=suspects,
    words={"accuracy": "share of right images"},
    loop=LOOP,
)


def register() -> None:
    """What importing a package of this kind would do; here it is left to the tests, which forget it again."""
    register_field("image_class", Value())
    register_model(NAME, architecture="ColourModel", kind=NAME)(colour_model)
    register_kind(KIND)
