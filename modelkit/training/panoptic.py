"""``python -m modelkit.training.panoptic --model upsnet``: train a panoptic model on digitscape and report PQ.

The detector starts from the shipped ``digitscape_mask_rcnn``; the semantic head starts anew and learns faster. Scenes
(pairs of consecutive frames for a video model) are composed on the fly; after the last step the averaged weights are
written with their record, judged on ``test`` scenes (a video model on clips, too), and what they reached is printed as
JSON. Stopping it costs the steps since the last checkpoint: the same command goes on from there.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modelkit.digitscape import CLASS_NAMES, FIRST_STUFF_ID, STUFF_NAMES, Digitscape, Scene, SceneStyle
from modelkit.evaluation_panoptic import evaluate_clips, evaluate_panoptic, panoptic_json, predict_clip
from modelkit.layers.deformable import OffsetConv2d
from modelkit.loading import load
from modelkit.panoptic import PanopticSegmentor, VPSNet
from modelkit.predictor import Predictor
from modelkit.registry import create_model
from modelkit.training.data import collate
from modelkit.training.loop import LoopConfig, Trainer, progress_printer, seed_step
from modelkit.training.recipes import Recipe, digitscape_mask_rcnn
from modelkit.training.shipping import LICENCE, TEST_SEED, seconds_per_image, test_scenes
from modelkit.weights import (
    RECORD,
    TENSORS,
    ClassInfo,
    load_weights,
    read_record,
    save_weights,
    shipped_folder,
    with_metrics,
    write_record,
)

_TRAIN_SEED = 11  # the shipped detector saw the scenes of seed 1
_START = "digitscape_mask_rcnn"
_FRESH = ("semantic", "temporal", "detector.roi_heads.track")  # parts that the shipped detector lacks
_POOLING = {"sampling_ratio": 1, "canonical_level": 3, "canonical_scale": 56}
_OWN: dict[str, dict[str, Any]] = {
    "panoptic_fpn": {"semantic": {"name": "semantic_fpn", "channels": 64}},
    "upsnet": {
        "semantic": {"name": "deformable_semantic", "channels": [64, 64]},
        "fusion": {"roi_semantic": False},
    },
    "vpsnet": {
        # without the group norm of the large form: its 32 groups would be two channels wide, and learn late
        "semantic": {"name": "deformable_semantic", "channels": [64, 64], "norm": None},
        "heads": {"track": {"name": "track_head", "channels": 128, **_POOLING}},
        "temporal": {"name": "temporal_fusion", "refine_channels": [32, 32]},
        "flow": {"name": "zero"},  # objects move two pixels a frame; the refinement of the flow reaches sixteen
    },
}


@dataclass(frozen=True, slots=True)
class PanopticRecipe(Recipe):
    """How a panoptic model is trained on digitscape.

    Args:
        name: of the weights.
        model: arguments of ``create_model``.
        start: shipped weights of the detector inside.
        style: of the training scenes.
        size_hw: of the training scenes.
        batch_size: images per step.
        loop: how to optimise.
        fresh_rate: factor on the learning rate of the parts that start anew.
        offset_rate: that of the convolutions which give offsets to deformable ones. Adam moves every weight equally
            far whatever its gradient, and hundreds of weights that move as one push samples off by pixels.
        tested_transform: options of the transform that the weights get in place of training's; see ``DemoRecipe``.
        num_test_scenes: for PQ.
        num_test_clips, clip_frames: for VPQ of a video model.
        min_side_px: thinner visible parts are no objects.
    """

    name: str
    model: dict[str, Any]
    start: str
    style: SceneStyle
    size_hw: tuple[int, int]
    batch_size: int
    loop: LoopConfig
    fresh_rate: float = 4.0
    offset_rate: float = 0.1
    tested_transform: dict[str, Any] = field(default_factory=dict)
    num_test_scenes: int = 200
    num_test_clips: int = 20
    clip_frames: int = 12
    min_side_px: float = 3.0


def recipe_of(name: str, steps: int = 600) -> PanopticRecipe:
    """The recipe of a panoptic model: the shipped detector's parts, and a semantic head of about its width."""
    demo = digitscape_mask_rcnn()
    parts = {key: value for key, value in demo.model.items() if key not in ("name", "num_classes")}
    model = {
        "name": name,
        "num_things": len(CLASS_NAMES),
        "num_stuff": len(STUFF_NAMES),
        **parts,
        **_OWN[name],
        "heads": {**parts["heads"], **_OWN[name].get("heads", {})},
        "fusion": {"stuff_area": 128, **_OWN[name].get("fusion", {})},
        "loss_weights": {"loss_semantic": 1.0, "loss_panoptic": 0.5},
    }
    loop = LoopConfig(
        steps=steps, learning_rate=6e-4, warmup_steps=50, decay_from=steps // 2, ema_decay=0.99, checkpoint_every=50
    )
    return PanopticRecipe(
        name=f"digitscape_{name}",
        model=model,
        start=_START,
        style=demo.style,
        size_hw=demo.size_hw,
        batch_size=8,
        loop=loop,
        tested_transform=dict(demo.shipped_transform),
    )


def build(recipe: PanopticRecipe) -> PanopticSegmentor:
    """The model with the shipped detector inside and everything else fresh, the same in every process."""
    seed_step(recipe.loop.seed, -1 & 0xFFFF, 0)
    model = create_model(**recipe.model)
    if not isinstance(model, PanopticSegmentor):
        raise ValueError(f"the panoptic recipe needs a panoptic model, got {type(model).__name__}")
    trained = load_weights(shipped_folder() / f"{recipe.start}{RECORD}")[0]
    missing, surplus = model.detector.load_state_dict(trained.state_dict(), strict=False)
    if surplus or any(not name.startswith("roi_heads.track.") for name in missing):
        raise ValueError(f"{recipe.start} does not fit the recipe's detector: missing {missing}, surplus {surplus}")
    if isinstance(model, VPSNet):  # at first no frame changes another's features: the detector is as good as it was
        nn.init.zeros_(model.temporal.refine.weight)
    for part in (model.detector.backbone, model.detector.neck, model.detector.rpn):
        part.to(memory_format=torch.channels_last)
    return model


def rate_scales(recipe: PanopticRecipe, model: PanopticSegmentor) -> dict[str, float]:
    """Factors on the learning rate, as ``Trainer`` wants them."""
    fresh = {f"{part}.": recipe.fresh_rate for part in _FRESH}
    offsets = [name for name, module in model.named_modules() if isinstance(module, OffsetConv2d)]
    return fresh | {f"{name}.offset.": recipe.offset_rate for name in offsets}


def training_batch(
    recipe: PanopticRecipe, source: Digitscape, step: int, pairs: bool
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Images (3, H, W) in [0, 1] and their targets, a pure function of the step.

    Args:
        recipe: sizes.
        source: of scenes, or of clips.
        step: of the training.
        pairs: each image is the second frame of a clip and its target holds the first: see ``VPSNet``.
    """
    numbers = range(step * recipe.batch_size, (step + 1) * recipe.batch_size)
    if not pairs:
        return scene_targets([source.scene(index) for index in numbers], recipe.min_side_px)
    clips = [source.clip(index, 2) for index in numbers]
    images, targets = scene_targets([clip[1] for clip in clips], recipe.min_side_px)
    earlier, references = scene_targets([clip[0] for clip in clips], recipe.min_side_px)
    for target, image, reference in zip(targets, earlier, references, strict=True):
        target["reference_image"] = image
        target["reference_boxes"] = reference["boxes"]
        target["reference_track_ids"] = reference["track_ids"]
    return images, targets


def scene_targets(scenes: list[Scene], min_side_px: float = 3.0) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Scenes of one size as images and panoptic targets: detection, tracks, and the class of every pixel."""
    batch = collate(scenes, min_side_px)
    targets = [
        {**target, "semantic": torch.from_numpy(scene.semantic_map.astype(np.int64))}
        for scene, target in zip(scenes, batch.targets, strict=True)
    ]
    return list(batch.images), targets


def losses_of(model: PanopticSegmentor, recipe: PanopticRecipe) -> Callable[[int], dict[str, Tensor]]:
    """Named, weighted losses of a step's batch; no scene is seen twice."""
    source = Digitscape("train", recipe.size_hw, _TRAIN_SEED, recipe.style, dense=False)

    def losses(step: int) -> dict[str, Tensor]:
        images, targets = training_batch(recipe, source, step, pairs=isinstance(model, VPSNet))
        return {name: model.loss_weights[name] * value for name, value in model(images, targets).items()}

    return losses


def train(recipe: PanopticRecipe, folder: Path | None, until: int | None = None) -> Trainer:
    """Train to a recipe's end, or up to a step, from wherever the folder's checkpoint left off."""
    model = build(recipe)
    trainer = Trainer(
        model,
        losses_of(model, recipe),
        recipe.loop,
        folder=folder,
        fingerprint=recipe.fingerprint,
        rate_scales=rate_scales(recipe, model),
    )
    trainer.run(until, report=progress_printer())
    return trainer


def finish(recipe: PanopticRecipe, trainer: Trainer, output: Path) -> dict[str, Any]:
    """Write the averaged weights, judge what was written on test scenes, keep that in the record and return it."""
    transform = {**recipe.model["transform"], **recipe.tested_transform}
    model = create_model(**{**recipe.model, "transform": transform})
    model.load_state_dict(trainer.ema.model.state_dict())
    lineage = {
        "kind": "trained",
        "recipe": recipe.to_json(),
        "recipe_fingerprint": recipe.fingerprint,
        "steps": trainer.step,
        "images": trainer.step * recipe.batch_size,
        "training_seconds": round(trainer.seconds),
        "start": recipe.start,
    }
    save_weights(model.eval(), output, name=recipe.name, classes=classes(), lineage=lineage, licence=LICENCE)
    started = time.perf_counter()
    reached = judge(recipe, load(output / f"{recipe.name}{TENSORS}"))
    reached["evaluation_seconds"] = round(time.perf_counter() - started, 1)
    path = output / f"{recipe.name}{RECORD}"
    write_record(path, with_metrics(read_record(path), {"digitscape-test": reached}))
    return reached


def judge(recipe: PanopticRecipe, predictor: Predictor) -> dict[str, Any]:
    """PQ on ``test`` scenes; of a video model VPQ and identity switches on ``test`` clips as well.

    Backgrounds are cut from few photographs a split, so the stuff of ``test`` tells what a model makes of pictures
    it never saw; the keys ``..._seen`` are of new scenes over the photographs of training.
    """
    source = test_scenes(recipe.size_hw)
    reached: dict[str, Any] = panoptic_json(evaluate_panoptic(predictor, source, recipe.num_test_scenes))
    seen = Digitscape("train", recipe.size_hw, TEST_SEED, dense=False)
    again = panoptic_json(evaluate_panoptic(predictor, seen, recipe.num_test_scenes))
    reached |= {f"{name}_seen": again[name] for name in ("pq", "pq_things", "pq_stuff")}
    if predictor.is_video:
        clips = functools.partial(predict_clip, predictor)
        reached |= evaluate_clips(clips, source, recipe.num_test_clips, recipe.clip_frames).to_json()
        reached |= {"clips": recipe.num_test_clips, "clip_frames": recipe.clip_frames}
    return reached | {
        "scenes": recipe.num_test_scenes,
        "size_hw": list(recipe.size_hw),
        "seed": TEST_SEED,
        "seconds_per_image": round(seconds_per_image(predictor, recipe.size_hw), 5),
        "threads": torch.get_num_threads(),
    }


def classes() -> list[ClassInfo]:
    """Digits are things, backgrounds are stuff."""
    things = [ClassInfo(index + 1, name) for index, name in enumerate(CLASS_NAMES)]
    return things + [ClassInfo(FIRST_STUFF_ID + k, name, is_thing=False) for k, name in enumerate(STUFF_NAMES)]


def main(arguments: list[str] | None = None) -> int:
    """Train, write, judge, print. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m modelkit.training.panoptic", description=__doc__)
    parser.add_argument("--model", choices=sorted(_OWN), default="upsnet")
    parser.add_argument("--steps", type=int, default=600, help="in all (another number is another recipe)")
    parser.add_argument("--until", type=int, default=None, help="stop here for now")
    parser.add_argument("--test-scenes", type=int, default=200)
    parser.add_argument("--test-clips", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=None, help="checkpoints and weights (default: .train/MODEL)")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(".train") / options.model
    recipe = recipe_of(options.model, options.steps)
    trainer = train(recipe, folder, options.until)
    if trainer.step < recipe.loop.steps:
        print(f"stopped at step {trainer.step} of {recipe.loop.steps}; the same command goes on", file=sys.stderr)
        return 0
    judged = replace(recipe, num_test_scenes=options.test_scenes, num_test_clips=options.test_clips)
    reached = finish(judged, trainer, folder / "weights")
    print(
        json.dumps(
            {"model": options.model, "steps": trainer.step, "training_seconds": round(trainer.seconds), **reached}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
