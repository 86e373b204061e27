"""``python -m modelkit.training.onestage``: train a small YOLACT on digitscape and report its mask AP.

The backbone starts from the shipped ``digitscape_mask_rcnn``, everything after it anew. Scenes are composed on the
fly; after the last step AP on ``test`` scenes is printed as JSON and kept in the record beside the weights. Stopping
it costs the steps since the last checkpoint: the same command goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from modelkit.base import VisionModel
from modelkit.digitscape import CLASS_NAMES, Digitscape, SceneStyle
from modelkit.evaluation import evaluate_digitscape
from modelkit.onestage.detector import AnchorDetector
from modelkit.registry import create_model
from modelkit.training.data import SceneBatches
from modelkit.training.loop import LoopConfig, Trainer, seed_step
from modelkit.training.recipes import digitscape_mask_rcnn
from modelkit.training.shipping import LICENCE, model_predict, test_scenes
from modelkit.weights import (
    RECORD,
    ClassInfo,
    load_weights,
    read_record,
    save_weights,
    shipped_folder,
    with_metrics,
    write_record,
)

_NAME = "digitscape_yolact"
_START = "digitscape_mask_rcnn"
_TRAIN_SEED = 21  # the shipped detector saw the scenes of seed 1
_PRINT_EVERY = 20
_TIMED_IMAGES = 30


@dataclass(frozen=True, slots=True)
class OneStageRecipe:
    """How a one-stage model is trained on digitscape.

    Args:
        model: arguments of ``create_model``; its backbone is the shipped detector's.
        style: of the training scenes.
        size_hw: of the scenes.
        batch_size: images per step.
        loop: how to optimise.
        num_test_scenes: for AP.
    """

    model: dict[str, Any]
    style: SceneStyle
    size_hw: tuple[int, int]
    batch_size: int
    loop: LoopConfig
    num_test_scenes: int = 200

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with anything that changes the weights."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


def digitscape_yolact(steps: int) -> OneStageRecipe:
    """A YOLACT for scenes of 160 pixels: four maps from stride 4 on, priors of a digit's sizes and proportions."""
    demo = digitscape_mask_rcnn()
    model = {
        "name": "yolact",
        "num_classes": len(CLASS_NAMES) + 1,
        "backbone": demo.model["backbone"],
        "neck": {"channels": 64, "num_downsample": 0},
        "head": {
            "anchor_scales": [[28], [46], [70], [100]],
            "aspect_ratios": [0.8, 0.45],
            "square_anchors": False,
            "num_prototypes": 16,
        },
        "transform": {
            "min_size": 160,
            "max_size": 160,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
    }
    loop = LoopConfig(
        steps=steps, learning_rate=1.5e-3, warmup_steps=30, decay_from=steps // 4, ema_decay=0.99, checkpoint_every=50
    )
    return OneStageRecipe(model, demo.style, demo.size_hw, 8, loop)


def build(recipe: OneStageRecipe) -> AnchorDetector:
    """The model with the shipped detector's backbone and everything else fresh, the same in every process."""
    seed_step(recipe.loop.seed, -1 & 0xFFFF, 0)
    model = create_model(**recipe.model)
    if not isinstance(model, AnchorDetector):
        raise ValueError(f"the recipe needs a one-stage model with priors, got {type(model).__name__}")
    trained = load_weights(shipped_folder() / f"{_START}{RECORD}")[0].state_dict()
    model.backbone.load_state_dict(
        {name.removeprefix("backbone."): value for name, value in trained.items() if name.startswith("backbone.")}
    )
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def train(recipe: OneStageRecipe, folder: Path | None, until: int | None = None) -> Trainer:
    """Train up to the end of a recipe, or up to a step, resuming from ``folder``."""
    model = build(recipe)
    batches = SceneBatches(
        Digitscape("train", recipe.size_hw, _TRAIN_SEED, recipe.style, dense=False), recipe.batch_size
    )

    def losses(step: int) -> dict[str, Tensor]:
        batch = batches.batch(step)
        return {
            name: model.loss_weights[name] * value for name, value in model(list(batch.images), batch.targets).items()
        }

    trainer = Trainer(model, losses, recipe.loop, folder=folder, fingerprint=recipe.fingerprint)
    trainer.run(until, report=_reporter())
    return trainer


def _reporter() -> Callable[[Trainer, Mapping[str, float]], None]:
    sums: dict[str, float] = {}

    def report(trainer: Trainer, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value / _PRINT_EVERY
        if trainer.step % _PRINT_EVERY == 0:
            shown = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in sums.items())
            print(f"step {trainer.step}/{trainer.config.steps}  {trainer.seconds:.0f} s  {shown}", file=sys.stderr)
            sums.clear()

    return report


def judge(recipe: OneStageRecipe, trainer: Trainer) -> dict[str, Any]:
    """Mask and box AP of the averaged weights on ``test`` scenes, and how long an image takes here."""
    model = cast(VisionModel, trainer.ema.model).eval()
    predict, source = model_predict(model), test_scenes(recipe.size_hw)
    evaluation = evaluate_digitscape(predict, source, recipe.num_test_scenes)
    seconds = []
    for index in range(_TIMED_IMAGES):
        image = source.scene(index).image_rgb
        begin = time.perf_counter()
        predict([image])
        seconds.append(time.perf_counter() - begin)
    return {
        "tool": "pycocotools",
        "scenes": evaluation.num_scenes,
        "objects": evaluation.num_objects,
        "mask": {key: round(value, 4) for key, value in asdict(evaluation.mask).items() if key != "by_class"},
        "box": {key: round(value, 4) for key, value in asdict(evaluation.box).items() if key != "by_class"},
        "seconds_per_image": round(median(seconds), 4),
        "threads": torch.get_num_threads(),
    }


def keep(recipe: OneStageRecipe, trainer: Trainer, metrics: Mapping[str, Any], output: Path) -> Path:
    """Write the averaged weights with their record; returns the record's path."""
    lineage = {
        "kind": "trained",
        "recipe": json.loads(json.dumps(asdict(recipe))),
        "recipe_fingerprint": recipe.fingerprint,
        "steps": trainer.step,
        "images": trainer.step * recipe.batch_size,
        "training_seconds": round(trainer.seconds),
        "backbone": _START,
        "torch": torch.__version__,
    }
    model = cast(VisionModel, trainer.ema.model)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    classes = [ClassInfo(k + 1, name) for k, name in enumerate(CLASS_NAMES)]
    save_weights(model, output, name=_NAME, classes=classes, lineage=lineage, licence=LICENCE)
    path = output / f"{_NAME}{RECORD}"
    write_record(path, with_metrics(read_record(path), {"digitscape-test": dict(metrics)}))
    return path


def main(arguments: list[str] | None = None) -> int:
    """Train, judge, keep. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m modelkit.training.onestage", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".train/onestage"), help="checkpoints and weights")
    parser.add_argument("--steps", type=int, default=400, help="of 8 scenes each; another number is another recipe")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe = digitscape_yolact(options.steps)
    trainer = train(recipe, options.folder)
    metrics = judge(recipe, trainer)
    record = keep(recipe, trainer, metrics, options.folder)
    print(json.dumps({"record": str(record), "training_seconds": round(trainer.seconds), **metrics}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
