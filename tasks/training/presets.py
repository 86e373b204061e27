"""Recipes by name, those of the kinds, completed from what is trained on; a command changes single values of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import modelkit
from infra.errors import UsageError
from infra.store import open_store, split_uri
from modelkit import ClassInfo
from modelkit.registry import find_model
from modelkit.training.loop import LoopConfig
from tasks.labels.label_sets import LabelSet, relabelled
from tasks.product import Kind, find_kind, kind_names, kinds, products
from tasks.training.inspection import Inspection, inspect_labels
from tasks.training.recipe import TrainingRecipe, with_steps

VALIDATION = 0.1
"""Share of the labels that derived recipes hold out."""
EMA_DECAYS = ((500, 0.96), (2_000, 0.99), (20_000, 0.996), (100_000, 0.999))
_LONG_EMA_DECAY = 0.9996


def ema_decay(steps: int) -> float:
    """The average forgets more slowly the longer a run is; that of a short one must not recall its beginning."""
    return next((decay for limit, decay in EMA_DECAYS if steps < limit), _LONG_EMA_DECAY)


def make_recipe(
    preset: str,
    classes: Sequence[ClassInfo],
    *,
    steps: int | None = None,
    seed: int,
    name: str | None = None,
    changes: Mapping[str, Any] | None = None,
    seen: Inspection | None = None,
    size: str = "small",
) -> TrainingRecipe:
    """A whole recipe.

    Args:
        preset: a recipe of a kind, a registered model (with its defaults), the URI of a recipe's JSON or of a record
            that holds one, or a kind, whose recipe is then derived from the labels.
        classes: of the labels; the model gets one more than the largest id.
        steps: of the run; schedules stretch along. None: as many as the recipe says.
        seed: of the run.
        name: of the weights; default: that of the preset.
        changes: other values of the recipe.
        seen: the labels that a recipe is derived from.
        size: of a derived one's model: "small" is for processors, "usual" is what papers report.

    Raises:
        UsageError: for an unknown preset, or a recipe that makes no sense.
    """
    if _is_file(preset):
        recipe = _for_classes(_read(preset, steps), classes)
    elif preset in kind_names():
        recipe = _derived(preset, seen, classes, steps, size)
    else:
        recipe = _of_model(preset, classes, steps)
    recipe = with_steps(recipe, steps or recipe.loop.steps)
    loop = dataclasses.replace(recipe.loop, seed=seed)
    whole = recipe.to_json() | {"loop": dataclasses.asdict(loop), "classes": [dataclasses.astuple(c) for c in classes]}
    fitted = find_kind(recipe.kind).fitted
    if fitted is not None:
        if seen is None:
            raise UsageError(f"a recipe of the kind {recipe.kind!r} needs labels")
        whole |= fitted(seen, whole)
    given = dict(changes or {})
    if "initial" in given:  # what a recipe takes of its own beginning says nothing of another one
        given = {"initial_parts": [""], **given}
    return TrainingRecipe.from_json(whole | {"name": name or recipe.name} | given)


def recipe_for(
    labels: LabelSet, preset: str | None, *, steps: int | None, seed: int, **more: Any
) -> tuple[TrainingRecipe, LabelSet]:
    """The recipe that is asked for, else what the labels call for; and the labels under the ids of its model.

    Args:
        labels: to train on.
        preset, steps, seed, more: see :func:`make_recipe`; no preset derives the recipe.
    """
    preset = preset or kind_of_labels(inspect_labels(labels))
    labels = numbered(labels, kind_of_preset(preset))
    seen = inspect_labels(labels)
    return make_recipe(preset, labels.classes, steps=steps, seed=seed, seen=seen, **more), labels


def _is_file(preset: str) -> bool:
    return preset.endswith(".json")


def kind_of_labels(seen: Inspection, does: Callable[[Kind], bool] = lambda kind: True) -> str:
    """The kind of model that labels are for, of those that do what is wanted. Raises UsageError where there is none."""
    for name, kind in _in_order():
        if kind.derived is not None and kind.suits(seen) and does(kind):
            return name
    raise UsageError(
        "no kind of model learns from these labels by itself",
        hint=f"name a recipe, or a kind: {', '.join(kind_names())}",
    )


def misfit(kind: str, seen: Inspection) -> str | None:
    """A sentence for people who train a kind of model on labels that call for another; None where they do not."""
    named = find_kind(kind)
    if named.suits(seen) or named.meant_for(seen):
        return None
    try:
        wanted = kind_of_labels(seen)
    except UsageError:
        return None
    return f"the labels call for a model of kind {wanted}; this recipe makes one of kind {kind}"


def kind_of_preset(preset: str) -> str:
    """What the model of a preset does; see :func:`make_recipe`. Raises UsageError for an unknown one."""
    if preset in kind_names():
        return preset
    if _is_file(preset):
        return _read(preset).kind
    for name, kind in kinds().items():
        if preset in kind.recipes:
            return name
    return find_model(_architecture(preset)).kind


def _in_order() -> Iterator[tuple[str, Kind]]:
    """Kinds that can be trained, those of each product in its own order."""
    known = kinds()
    named = [name for product in products().values() for name in product.kinds if name in known]
    for name in [*named, *(name for name in known if name not in named)]:
        yield name, known[name]


def numbered(labels: LabelSet, kind: str) -> LabelSet:
    """The labels under the class ids that models of a kind know, where these want an order; the file's ids are kept."""
    number = find_kind(kind).numbered
    if number is None:
        return labels
    ids = number(labels.classes)
    if all(old == new for old, new in ids.items()):
        return labels
    classes = sorted((dataclasses.replace(each, id=ids[each.id]) for each in labels.classes), key=lambda each: each.id)
    file_ids = {ids[label]: labels.file_ids.get(label, label) for label in ids}
    return relabelled(labels, ids, classes, file_ids)


def _derived(
    kind: str, seen: Inspection | None, classes: Sequence[ClassInfo], steps: int | None, size: str
) -> TrainingRecipe:
    derived = find_kind(kind).derived
    if derived is None or seen is None:
        raise UsageError(
            f"no recipe is derived for the kind {kind!r} here", hint="`visionmill inspect LABELLED --save RECIPE.json`"
        )
    return _completed(f"derived_{kind}", {"validation": VALIDATION, **derived(seen, size)}, classes, steps)


def _of_model(preset: str, classes: Sequence[ClassInfo], steps: int | None) -> TrainingRecipe:
    """A kind's recipe, or a model as it is, for these classes."""
    recipes = {name: recipe for kind in kinds().values() for name, recipe in kind.recipes.items()}
    values = recipes[preset](classes) if preset in recipes else {"architecture": _architecture(preset)}
    return _completed(preset, values, classes, steps)


def _architecture(preset: str) -> str:
    if preset in {info.name for info in modelkit.list_models()}:
        return preset
    recipes = sorted(name for kind in kinds().values() for name in kind.recipes)
    raise UsageError(
        f"no recipe and no model is called {preset!r}",
        hint=f"recipes: {', '.join(recipes)}; {', '.join(kind_names())} derive one from the labels; "
        "`visionmill models list` shows the models",
    )


def _completed(name: str, values: Mapping[str, Any], classes: Sequence[ClassInfo], steps: int | None) -> TrainingRecipe:
    """A recipe of which only what is not the default is stated."""
    values = dict(values)
    architecture = values.pop("architecture")
    config = values.pop("config", {}) | find_kind(find_model(architecture).kind).class_counts(classes)
    stated = {"steps": 1000, "warmup_steps": 50, "checkpoint_every": 100, **values.pop("loop", {})}
    loop = LoopConfig(**{"ema_decay": ema_decay(steps or stated["steps"]), **stated})
    name = values.pop("name", name)
    return TrainingRecipe(name, architecture, config, tuple(dataclasses.astuple(c) for c in classes), loop, **values)


def _for_classes(recipe: TrainingRecipe, classes: Sequence[ClassInfo]) -> TrainingRecipe:
    """A recipe from a file for the labels' classes; where these are as many as its own its model stays as it is."""
    counts = find_kind(recipe.kind).class_counts
    if counts(classes) == counts(recipe.class_infos):
        return recipe
    return dataclasses.replace(recipe, config=recipe.config | dict(counts(classes)))


def _read(uri: str, steps: int | None = None) -> TrainingRecipe:
    """The recipe in a JSON: of its own, in the record of weights, or in that of a run."""
    root, key = split_uri(uri)
    try:
        value = json.loads(open_store(root).get(key))
    except json.JSONDecodeError as error:
        raise UsageError(f"{uri} is no recipe: {error}") from error
    inner = value.get("lineage", value) if isinstance(value, dict) else {}
    recipe = TrainingRecipe.from_json(inner.get("recipe", value))
    if steps is None or steps == recipe.loop.steps:
        return recipe
    return dataclasses.replace(recipe, loop=dataclasses.replace(recipe.loop, ema_decay=ema_decay(steps)))
