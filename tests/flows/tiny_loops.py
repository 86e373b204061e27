"""A whole self-training loop for semantic segmentation that takes seconds: tiny scenes, a U-Net of a few channels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from modelkit import ClassInfo
from modelkit.digitscape import CLASS_NAMES, Digitscape, SceneStyle, write_dataset
from tasks.training.presets import make_recipe

SIZE = (64, 64)
# So little of a scene is digits that "background" is certified whatever the last digits of a short training are.
STYLE = SceneStyle(digits=(1, 1), size_px=(16.0, 20.0), empty_share=0.0, overlap=0.1)
CLASSES = [ClassInfo(k + 1, name) for k, name in enumerate(CLASS_NAMES)]
STEPS = 30


def tiny_loop(folder: Path) -> dict[str, Any]:
    """Parameters of ``retrain_model`` on 40 labelled and 8 unlabelled scenes below a folder, audited by truth."""
    source = Digitscape("train", SIZE, seed=6, style=STYLE, dense=False)
    labelled = write_dataset(folder / "labelled", source, 40, image_format="png")
    audit = write_dataset(folder / "unlabelled", source, 8, first=500, image_format="png")
    plan = make_recipe("digitscape_unet", CLASSES, steps=STEPS, seed=0)
    config = {**plan.config, "backbone": {"widths": [8, 12]}, "transform": {"min_size": 64, "max_size": 64}}
    loop = dataclasses.replace(plan.loop, learning_rate=1e-2, warmup_steps=2, checkpoint_every=3)
    plan = dataclasses.replace(plan, batch_size=4, config=config, loop=loop)
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
        "shares": {"L": 0.3, "C": 0.4, "G": 0.3},
        "ray": "none",
    }
