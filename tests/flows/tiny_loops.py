"""Whole self-training loops that take seconds: tiny scenes, a small U-Net, the shipped detector as a start."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from modelkit import ClassInfo
from modelkit.digitscape import CLASS_NAMES, Digitscape, SceneStyle, write_dataset, write_panoptic
from tasks.labels.reading import read_label_set
from tasks.training.inspection import inspect_labels
from tasks.training.presets import make_recipe
from tasks.training.recipe import PLAIN

SIZE = (64, 64)
# Bright digits on one colour: a few steps tell ink from background, so "background" is certified.
STYLE = SceneStyle(
    digits=(2, 2), size_px=(30.0, 40.0), empty_share=0.0, overlap=0.1, threshold=(0.15, 0.2), min_contrast=120.0,
    opacity=(1.0, 1.0), noise_std=0.0, blur_share=0.0, plain_share=1.0,
)  # fmt: skip
CLASSES = [ClassInfo(k + 1, name) for k, name in enumerate(CLASS_NAMES)]
STEPS = 100


def tiny_loop(folder: Path) -> dict[str, Any]:
    """Parameters of ``retrain_model`` on 90 labelled and 8 unlabelled scenes below a folder, audited by truth."""
    source = Digitscape("train", SIZE, seed=6, style=STYLE, dense=False)
    labelled = write_dataset(folder / "labelled", source, 90, image_format="png")
    audit = write_dataset(folder / "unlabelled", source, 8, first=500, image_format="png")
    plan = make_recipe("digitscape_unet", CLASSES, steps=STEPS, seed=0)
    config = {**plan.config, "backbone": {"widths": [8, 12]}, "transform": {"min_size": 64, "max_size": 64}}
    loop = dataclasses.replace(plan.loop, learning_rate=8e-3, warmup_steps=2, checkpoint_every=5)
    plan = dataclasses.replace(plan, batch_size=5, config=config, loop=loop, unlabelled=PLAIN)
    recipe = folder / "tiny.json"
    recipe.write_text(json.dumps(plan.to_json()))
    return {
        "task": "semantic",
        "labelled": str(labelled),
        "unlabelled": str(folder / "unlabelled" / "images"),
        "audit": str(audit),
        "output": str(folder / "loop"),
        "recipe": str(recipe),
        "steps": STEPS,
        "shares": {"train": 0.3, "calibration": 0.4, "gate": 0.3},
        "tta": ["0.75x"],
        "precision": 0.5,  # what so few steps learn can keep it, whatever the last digits of a sum are
        "ray": "none",
    }


def tiny_panoptic_loop(folder: Path) -> dict[str, Any]:
    """Parameters of a panoptic loop on 150 labelled and 10 unlabelled scenes, audited by truth.

    The detector inside is the shipped one, which knows the digits; what is to be learnt is the ground. Sixty scenes
    calibrate: one ground each is evidence enough (29) even if what goes wrong in an image goes wrong twice.
    """
    source = Digitscape("train", (96, 96), seed=6, style=STYLE, dense=False)
    labelled = write_panoptic(folder / "labelled", source, 150, image_format="png")
    audit = write_panoptic(folder / "unlabelled", source, 10, first=500, image_format="png")
    steps = 30
    plan = make_recipe("digitscape_panoptic", read_label_set(str(labelled)).classes, steps=steps, seed=0)
    loop = dataclasses.replace(plan.loop, learning_rate=2e-4, warmup_steps=2, checkpoint_every=10)
    config = {**plan.config, "transform": {"min_size": 96, "max_size": 96}}
    plan = dataclasses.replace(
        plan, batch_size=4, config=config, loop=loop, unlabelled=PLAIN, initial="digitscape_mask_rcnn",
        rate_scales={"semantic.": 20.0},
    )  # fmt: skip
    recipe = folder / "tiny.json"
    recipe.write_text(json.dumps(plan.to_json()))
    return {
        "task": "panoptic",
        "labelled": str(labelled),
        "unlabelled": str(folder / "unlabelled" / "images"),
        "audit": str(audit),
        "output": str(folder / "loop"),
        "recipe": str(recipe),
        "steps": steps,
        "shares": {"train": 0.3, "calibration": 0.4, "gate": 0.3},
        "precision": 0.6,
        "ray": "none",
    }


def tiny_point_loop(folder: Path, *, size_px: int = 96) -> dict[str, Any]:
    """Parameters of a loop on the points of digits, audited by truth: 60 labelled and 12 unlabelled scenes.

    The shipped detector finds the digits, whose backbone is where the landmarker begins, too.
    """
    source = Digitscape("train", (size_px, size_px), seed=6, style=STYLE, dense=False)
    labelled = write_dataset(folder / "labelled", source, 60, image_format="png")
    audit = write_dataset(folder / "unlabelled", source, 12, first=500, image_format="png")
    steps = 60
    labels = read_label_set(str(labelled))
    plan = make_recipe("digitscape_heatmap", labels.classes, steps=steps, seed=0, seen=inspect_labels(labels))
    config = {**plan.config, "transform": {"padding": "letterbox", "fixed_hw": [48, 32]}}
    loop = dataclasses.replace(plan.loop, learning_rate=4e-3, warmup_steps=5, checkpoint_every=30)
    plan = dataclasses.replace(plan, batch_size=16, config=config, loop=loop, unlabelled=PLAIN)
    recipe = folder / "tiny.json"
    recipe.write_text(json.dumps(plan.to_json()))
    return {
        "task": "keypoints",
        "labelled": str(labelled),
        "unlabelled": str(folder / "unlabelled" / "images"),
        "audit": str(audit),
        "output": str(folder / "loop"),
        "recipe": str(recipe),
        "steps": steps,
        "shares": {"train": 0.3, "calibration": 0.4, "gate": 0.3},
        "detector": "digitscape_mask_rcnn",
        "tta": ["0.75x"],
        "precision": 0.6,
        "ray": "none",
    }
