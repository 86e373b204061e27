"""Recipes by name, completed from what is trained on; the command line changes single values of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import modelkit
from infra.errors import UsageError
from infra.store import open_store, split_uri
from modelkit import ClassInfo
from modelkit.registry import find_model
from modelkit.training.loop import LoopConfig
from modelkit.training.recipes import digitscape_mask_rcnn
from tasks.training.recipe import TrainingRecipe, with_steps

EMA_DECAYS = ((500, 0.96), (2_000, 0.99), (20_000, 0.996), (100_000, 0.999))
_LONG_EMA_DECAY = 0.9996


def ema_decay(steps: int) -> float:
    """The average forgets more slowly the longer a run is; that of a short one must not recall its beginning."""
    return next((decay for limit, decay in EMA_DECAYS if steps < limit), _LONG_EMA_DECAY)


def _digitscape(classes: Sequence[ClassInfo]) -> dict[str, Any]:
    """The shipped model's architecture, for scenes of about 160 pixels."""
    return {**digitscape_mask_rcnn(1).model}


def _digitscape_unet(classes: Sequence[ClassInfo]) -> dict[str, Any]:
    """A U-Net for the same scenes; their strokes are a few pixels wide, so Dice helps to keep them."""
    return {
        "name": "unet",
        "backbone": {"widths": [16, 32, 64, 96, 128]},
        "losses": {"dice": 1.0},
        "transform": {"min_size": 160, "max_size": 320},
    }


def _digitscape_panoptic(classes: Sequence[ClassInfo]) -> dict[str, Any]:
    """Panoptic FPN around the shipped detector's architecture."""
    from modelkit.training.panoptic import recipe_of  # brings its judges along

    return {**recipe_of("panoptic_fpn").model}


def _default(classes: Sequence[ClassInfo]) -> dict[str, Any]:
    """torchvision's Mask R-CNN."""
    return {"name": "mask_rcnn"}


PRESETS: dict[str, Callable[[Sequence[ClassInfo]], dict[str, Any]]] = {
    "digitscape": _digitscape,
    "digitscape_unet": _digitscape_unet,
    "digitscape_panoptic": _digitscape_panoptic,
    "mask_rcnn": _default,
}


def make_recipe(
    preset: str,
    classes: Sequence[ClassInfo],
    *,
    steps: int,
    seed: int,
    name: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> TrainingRecipe:
    """A whole recipe.

    Args:
        preset: a name in ``PRESETS``, a registered model (with its defaults), or the URI of a recipe's JSON.
        classes: of the labels; the model gets one more than the largest id.
        steps: of the run; schedules stretch along.
        seed: of the run.
        name: of the weights; default: that of the preset.
        changes: other values of the recipe.

    Raises:
        UsageError: for an unknown preset, or a recipe that makes no sense.
    """
    if preset.endswith(".json"):
        recipe = _read(preset)
    else:
        recipe = _of_model(preset, classes, seed)
    recipe = with_steps(recipe, steps)
    loop = dataclasses.replace(recipe.loop, seed=seed, ema_decay=ema_decay(steps))
    whole = recipe.to_json() | {"loop": dataclasses.asdict(loop), "classes": [dataclasses.astuple(c) for c in classes]}
    return TrainingRecipe.from_json(whole | {"name": name or recipe.name} | dict(changes or {}))


def _of_model(preset: str, classes: Sequence[ClassInfo], seed: int) -> TrainingRecipe:
    config: dict[str, Any] = PRESETS[preset](classes) if preset in PRESETS else {"name": preset}
    architecture = config.pop("name")
    if architecture not in {info.name for info in modelkit.list_models()}:
        raise UsageError(
            f"no recipe and no model is called {preset!r}",
            hint=f"recipes: {', '.join(PRESETS)}; `visionmill models list` shows the models",
        )
    config |= _class_counts(find_model(architecture).task, classes)
    loop = LoopConfig(steps=1000, warmup_steps=50, checkpoint_every=100, seed=seed)
    return TrainingRecipe(preset, architecture, config, tuple(dataclasses.astuple(c) for c in classes), loop)


def _class_counts(task: str, classes: Sequence[ClassInfo]) -> dict[str, int]:
    """How many classes a model gets, as its task counts them."""
    if task != "panoptic":
        return {"num_classes": max(each.id for each in classes) + 1}
    things, stuff = (sorted(each.id for each in classes if each.is_thing is thing) for thing in (True, False))
    if things + stuff != list(range(1, len(classes) + 1)):
        raise UsageError(
            f"of a panoptic model things are numbered from 1 on and stuff after them; here things are {things} and "
            f"stuff {stuff}",
            hint="Number the categories of the labels so.",
        )
    return {"num_things": len(things), "num_stuff": len(stuff)}


def _read(uri: str) -> TrainingRecipe:
    root, key = split_uri(uri)
    try:
        return TrainingRecipe.from_json(json.loads(open_store(root).get(key)))
    except json.JSONDecodeError as error:
        raise UsageError(f"{uri} is no recipe: {error}") from error
