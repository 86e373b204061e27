"""``python -m modelkit.training.train_demo_model``: train the model that ships with visionmill.

Composes digitscape scenes on the fly, trains the recipe ``digitscape_mask_rcnn`` in two single-threaded processes,
judges it on ``val`` scenes as it goes, and at the end writes weights and record with the metrics on ``test``
scenes. Stopping it at any time costs at most a hundred steps: the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from modelkit.digitscape import Digitscape
from modelkit.evaluation import Evaluation, evaluate_digitscape
from modelkit.training.data import SceneBatches
from modelkit.training.demo_model import DemoTraining
from modelkit.training.loop import Trainer, seed_step
from modelkit.training.processes import Rank, run_processes
from modelkit.training.recipes import DemoRecipe, digitscape_mask_rcnn
from modelkit.training.shipping import model_predict, ship, validation_scenes

_TRAIN_SEED = 1
_PRINT_EVERY = 20


def main(arguments: list[str] | None = None) -> int:
    """Train, evaluate, ship. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m modelkit.training.train_demo_model", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".train/demo_model"), help="where checkpoints live")
    parser.add_argument("--output", type=Path, default=None, help="where weights go (default: modelkit/shipped)")
    parser.add_argument("--processes", type=int, default=2, help="single-threaded training processes")
    parser.add_argument("--steps", type=int, default=None, help="end earlier or later than the recipe (another recipe)")
    parser.add_argument("--ship-only", action="store_true", help="ship the last checkpoint as it is")
    options = parser.parse_args(arguments)
    recipe = digitscape_mask_rcnn(options.processes)
    if options.steps is not None:
        recipe = dataclasses.replace(recipe, loop=dataclasses.replace(recipe.loop, steps=options.steps))
    if not options.ship_only:
        options.folder.mkdir(parents=True, exist_ok=True)
        run_processes(train, (recipe, options.folder), options.processes, (options.folder / "meeting").absolute())
    record = ship(recipe, options.folder, options.output)
    print(f"shipped {record}", file=sys.stderr)
    return 0


def train(recipe: DemoRecipe, folder: Path, rank: Rank) -> None:
    """Train one process's share of a recipe up to its end, resuming from ``folder``."""
    model = build(recipe)
    batches = SceneBatches(
        Digitscape("train", recipe.size_hw, _TRAIN_SEED, recipe.style, dense=False),
        recipe.batch_size,
        rank.count,
        recipe.min_side_px,
    )
    trainer = Trainer(
        model,
        lambda step: model.losses(batches.batch(step, rank.index), step),
        recipe.loop,
        folder=folder,
        fingerprint=recipe.fingerprint,
        rank=rank,
    )
    trainer.run(report=_reporter(recipe))


def build(recipe: DemoRecipe) -> DemoTraining:
    """The freshly initialised training module, the same in every process; convolutions run fastest channels-last."""
    seed_step(recipe.loop.seed, -1 & 0xFFFF, 0)
    model = DemoTraining(recipe)
    for part in (model.detector.backbone, model.detector.neck, model.detector.rpn, model.semantic):
        part.to(memory_format=torch.channels_last)
    return model


def validate(recipe: DemoRecipe, trainer: Trainer) -> Evaluation:
    """Judge the average on scenes of held-out training digits and photographs; the test split stays untouched."""
    average = trainer.ema.model
    assert isinstance(average, DemoTraining)  # what build() made
    source = validation_scenes(recipe.size_hw)
    return evaluate_digitscape(model_predict(average.detector), source, recipe.num_val_scenes)


def _reporter(recipe: DemoRecipe) -> Callable[[Trainer, dict[str, float]], None]:
    sums: dict[str, float] = {}
    started, first_step = time.perf_counter(), -1

    def report(trainer: Trainer, values: dict[str, float]) -> None:
        nonlocal started, first_step
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value / _PRINT_EVERY
        if first_step < 0:
            first_step = trainer.step - 1
        if trainer.rank.is_first and trainer.step % _PRINT_EVERY == 0:
            images = (trainer.step - first_step) * recipe.batch_size * trainer.rank.count
            rate = images / (time.perf_counter() - started)
            shown = "  ".join(f"{name.removeprefix('loss_')} {value:.4f}" for name, value in sums.items())
            print(f"step {trainer.step}/{recipe.loop.steps}  {shown}  {rate:.1f} images/s", file=sys.stderr, flush=True)
            started, first_step = time.perf_counter(), trainer.step
        if trainer.step % _PRINT_EVERY == 0:
            sums.clear()
        due = trainer.step > recipe.dense_steps and trainer.step % recipe.evaluate_every == 0
        if due and trainer.rank.is_first:
            trainer.history.append(_summary(trainer.step, validate(recipe, trainer)))
            print(f"val {trainer.history[-1]}", file=sys.stderr, flush=True)
            trainer.save()
            started, first_step = time.perf_counter(), trainer.step

    return report


def _summary(step: int, evaluation: Evaluation) -> dict[str, Any]:
    mask, box = asdict(evaluation.mask), asdict(evaluation.box)
    return {
        "step": step,
        **{f"mask_{name}": round(mask[name], 4) for name in ("ap", "ap50", "ap75")},
        **{f"box_{name}": round(box[name], 4) for name in ("ap", "ap50")},
    }


if __name__ == "__main__":
    sys.exit(main())
