"""Recipes by name, those of the kinds, completed from what is trained on; a command changes single values of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import modelkit
from infra.errors import UsageError
from infra.store import open_store, split_uri
from modelkit import ClassInfo
from modelkit.registry import find_model
from modelkit.training.loop import LoopConfig
from tasks.product import find_kind, kinds
from tasks.training.recipe import TrainingRecipe, with_steps

EMA_DECAYS = ((500, 0.96), (2_000, 0.99), (20_000, 0.996), (100_000, 0.999))
_LONG_EMA_DECAY = 0.9996


def ema_decay(steps: int) -> float:
    """The average forgets more slowly the longer a run is; that of a short one must not recall its beginning."""
    return next((decay for limit, decay in EMA_DECAYS if steps < limit), _LONG_EMA_DECAY)


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
        preset: a recipe of a kind, a registered model (with its defaults), or the URI of a recipe's JSON.
        classes: of the labels; the model gets one more than the largest id.
        steps: of the run; schedules stretch along.
        seed: of the run.
        name: of the weights; default: that of the preset.
        changes: other values of the recipe.

    Raises:
        UsageError: for an unknown preset, or a recipe that makes no sense.
    """
    recipe = _read(preset, steps) if preset.endswith(".json") else _of_model(preset, classes, steps)
    recipe = with_steps(recipe, steps)
    loop = dataclasses.replace(recipe.loop, seed=seed)
    whole = recipe.to_json() | {"loop": dataclasses.asdict(loop), "classes": [dataclasses.astuple(c) for c in classes]}
    return TrainingRecipe.from_json(whole | {"name": name or recipe.name} | dict(changes or {}))


def _of_model(preset: str, classes: Sequence[ClassInfo], steps: int) -> TrainingRecipe:
    """A kind's recipe, or a model as it is, for these classes."""
    recipes = {name: recipe for kind in kinds().values() for name, recipe in kind.recipes.items()}
    values: dict[str, Any] = dict(recipes[preset](classes)) if preset in recipes else {"architecture": preset}
    architecture = values.pop("architecture")
    if architecture not in {info.name for info in modelkit.list_models()}:
        raise UsageError(
            f"no recipe and no model is called {preset!r}",
            hint=f"recipes: {', '.join(sorted(recipes))}; `visionmill models list` shows the models",
        )
    config = values.pop("config", {}) | find_kind(find_model(architecture).kind).class_counts(classes)
    usual = {"steps": 1000, "warmup_steps": 50, "checkpoint_every": 100, "ema_decay": ema_decay(steps)}
    loop = LoopConfig(**{**usual, **values.pop("loop", {})})
    return TrainingRecipe(preset, architecture, config, tuple(dataclasses.astuple(c) for c in classes), loop, **values)


def _read(uri: str, steps: int) -> TrainingRecipe:
    root, key = split_uri(uri)
    try:
        recipe = TrainingRecipe.from_json(json.loads(open_store(root).get(key)))
    except json.JSONDecodeError as error:
        raise UsageError(f"{uri} is no recipe: {error}") from error
    return dataclasses.replace(recipe, loop=dataclasses.replace(recipe.loop, ema_decay=ema_decay(steps)))
