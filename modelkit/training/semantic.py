"""``python -m modelkit.training.semantic --model unet``: train a semantic model on digitscape and report its mean IoU.

Scenes are composed on the fly; after the last step the averaged weights are written with their record, judged on
``test`` scenes, and what they reached is printed as JSON. Stopping it costs the steps since the last checkpoint: the
same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelkit.digitscape import Digitscape, Scene, SceneStyle
from modelkit.evaluation_semantic import Labels, classes, evaluate_semantic, num_classes, truth
from modelkit.loading import load
from modelkit.registry import create_model
from modelkit.semantic import BackboneAndHead, SemanticSegmentor
from modelkit.training.data import collate
from modelkit.training.loop import LoopConfig, Trainer, progress_printer, seed_step
from modelkit.training.recipes import Recipe, digitscape_mask_rcnn
from modelkit.training.shipping import LICENCE, TEST_SEED, seconds_per_image, test_scenes
from modelkit.weights import (
    RECORD,
    TENSORS,
    load_weights,
    read_record,
    save_weights,
    shipped_folder,
    with_metrics,
    write_record,
)

_TRAIN_SEED = 21  # the shipped detector saw the scenes of seed 1
_START = "digitscape_mask_rcnn"
_SLIM = {"name": "slim_resnet", "widths": [32, 64, 128, 192], "depths": [2, 2, 2, 2]}  # the shipped detector's
# Small forms of the systems, for scenes of 160 pixels.
_MODELS: dict[str, dict[str, Any]] = {
    "deeplabv3plus": {
        "backbone": {**_SLIM, "out": ["c2", "c4"]},
        "head": {"channels": 64, "low_channels": 32, "decoder_convs": 2, "separable": True},
    },
    "fcn": {"backbone": _SLIM, "head": {"channels": 128, "dropout": 0.1}},
    "unet": {"backbone": _SLIM, "head": {"name": "unet_decoder"}},
}


@dataclass(frozen=True, slots=True)
class SemanticRecipe(Recipe):
    """How a semantic model is trained on digitscape.

    Args:
        name: of the weights.
        model: arguments of ``create_model``.
        start: shipped weights whose backbone it starts from; None starts anew.
        labels: which classes there are.
        background_weight: of pixels without a digit in the cross-entropy, where these are one class: nine tenths of all
            pixels, and without this the digits are learnt late.
        style: of the training scenes.
        size_hw: of the training scenes.
        batch_size: images per step.
        loop: how to optimise.
        num_test_scenes: to judge it on.
    """

    name: str
    model: dict[str, Any]
    start: str | None
    labels: Labels
    background_weight: float
    style: SceneStyle
    size_hw: tuple[int, int]
    batch_size: int
    loop: LoopConfig
    num_test_scenes: int = 200


def recipe_of(name: str, steps: int = 600, labels: Labels = "digits") -> SemanticRecipe:
    """The recipe of a system; those whose backbone is the shipped detector's start from it."""
    demo, own = digitscape_mask_rcnn(), _MODELS[name]
    model = {
        "name": name,
        "num_classes": num_classes(labels),
        **own,
        "losses": {"dice": 1.0},
        "transform": {"min_size": min(demo.size_hw), "max_size": 2 * max(demo.size_hw)},
        "background": 0 if labels == "digits" else None,
    }
    loop = LoopConfig(
        steps=steps, learning_rate=2e-3, warmup_steps=50, decay_from=steps // 3, ema_decay=0.99, checkpoint_every=50
    )
    return SemanticRecipe(
        name=f"digitscape_{name}",
        model=model,
        start=_START if own["backbone"].get("name") == _SLIM["name"] else None,
        labels=labels,
        background_weight=0.4,
        style=demo.style,
        size_hw=demo.size_hw,
        batch_size=8,
        loop=loop,
    )


def build(recipe: SemanticRecipe) -> SemanticSegmentor:
    """The model as it starts, the same in every process."""
    seed_step(recipe.loop.seed, -1 & 0xFFFF, 0)
    model = create_model(**recipe.model)
    if not isinstance(model, SemanticSegmentor):
        raise ValueError(f"the semantic recipe needs a semantic model, got {type(model).__name__}")
    if recipe.start is not None:
        assert isinstance(model.network, BackboneAndHead)  # as every recipe above has it
        trained = load_weights(shipped_folder() / f"{recipe.start}{RECORD}")[0].state_dict()
        prefix = "backbone."
        backbone = {key.removeprefix(prefix): value for key, value in trained.items() if key.startswith(prefix)}
        model.network.backbone.load_state_dict(backbone)
    model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def targets_of(scenes: list[Scene], recipe: SemanticRecipe) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images (3, H, W) float in [0, 1] and what ``SemanticSegmentor`` learns from them."""
    background = recipe.background_weight if recipe.labels == "digits" else 1.0
    targets = [
        {
            "semantic": torch.from_numpy(truth(scene, recipe.labels)).long(),
            "semantic_weights": torch.where(torch.from_numpy(scene.instance_map) > 0, 1.0, background),
        }
        for scene in scenes
    ]
    return list(collate(scenes).images), targets


def losses_of(model: SemanticSegmentor, recipe: SemanticRecipe) -> Callable[[int], dict[str, Tensor]]:
    """Named, weighted losses of a step's batch; no scene is seen twice."""
    source = Digitscape("train", recipe.size_hw, _TRAIN_SEED, recipe.style, dense=False)

    def losses(step: int) -> dict[str, Tensor]:
        numbers = range(step * recipe.batch_size, (step + 1) * recipe.batch_size)
        images, targets = targets_of([source.scene(number) for number in numbers], recipe)
        return {name: model.loss_weights[name] * value for name, value in model(images, targets).items()}

    return losses


def train(recipe: SemanticRecipe, folder: Path) -> Trainer:
    """Train to the recipe's end, from wherever the folder's checkpoint left off."""
    model = build(recipe)
    trainer = Trainer(model, losses_of(model, recipe), recipe.loop, folder=folder, fingerprint=recipe.fingerprint)
    trainer.run(report=progress_printer())
    return trainer


def finish(recipe: SemanticRecipe, trainer: Trainer, output: Path) -> dict[str, Any]:
    """Write the averaged weights, judge what was written on test scenes, keep that in the record and return it."""
    average = trainer.ema.model
    assert isinstance(average, SemanticSegmentor)  # what build() made
    lineage = {
        "kind": "trained",
        "recipe": recipe.to_json(),
        "recipe_fingerprint": recipe.fingerprint,
        "steps": trainer.step,
        "images": trainer.step * recipe.batch_size,
        "training_seconds": round(trainer.seconds),
        "start": recipe.start,
    }
    save_weights(average, output, name=recipe.name, classes=classes(recipe.labels), lineage=lineage, licence=LICENCE)
    predictor = load(output / f"{recipe.name}{TENSORS}")
    source, started = test_scenes(recipe.size_hw), time.perf_counter()
    scores = evaluate_semantic(predictor, source, recipe.num_test_scenes, labels=recipe.labels)
    reached = {
        "miou": round(scores.miou, 4),
        "pixel_accuracy": round(scores.pixel_accuracy, 4),
        "iou_by_class": {str(label): round(value, 4) for label, value in scores.by_class.items()},
        "scenes": recipe.num_test_scenes,
        "size_hw": list(recipe.size_hw),
        "seed": TEST_SEED,
        "seconds_per_image": round(seconds_per_image(predictor, recipe.size_hw), 5),
        "threads": torch.get_num_threads(),
        "evaluation_seconds": round(time.perf_counter() - started, 1),
    }
    path = output / f"{recipe.name}{RECORD}"
    write_record(path, with_metrics(read_record(path), {"digitscape-test": reached}))
    return reached


def main(arguments: list[str] | None = None) -> int:
    """Train, write, judge, print. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m modelkit.training.semantic", description=__doc__)
    parser.add_argument("--model", choices=sorted(_MODELS), default="deeplabv3plus")
    parser.add_argument(
        "--labels", choices=("digits", "all"), default="digits", help="with 'all' also kinds of background"
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--test-scenes", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=None, help="checkpoints and weights (default: .train/MODEL)")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(".train") / options.model
    recipe = recipe_of(options.model, options.steps, options.labels)
    recipe = replace(recipe, num_test_scenes=options.test_scenes)
    trainer = train(recipe, folder)
    reached = finish(recipe, trainer, folder / "weights")
    print(
        json.dumps(
            {"model": options.model, "steps": trainer.step, "training_seconds": round(trainer.seconds), **reached}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
