"""docs/recipe.md: its recipe can be read and its model made, and every field of it is explained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelkit import ClassInfo, create_model
from tasks.training.presets import make_recipe
from tasks.training.recipe import TrainingRecipe
from tests.flows.command import ROOT

PAGE = (ROOT / "docs" / "recipe.md").read_text("utf-8")
[EXAMPLE] = re.findall(r"^```json\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_recipe_of_the_page_is_one(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(EXAMPLE)
    recipe = make_recipe(str(path), [ClassInfo(1, "nucleus")], steps=None, seed=0)
    assert recipe.to_json() == json.loads(EXAMPLE), "nothing is left out"
    assert create_model(recipe.architecture, **recipe.config).num_classes == 2
    assert set(json.loads(EXAMPLE)) == set(TrainingRecipe.__dataclass_fields__)


def test_labels_with_more_classes_than_the_recipe_get_a_model_for_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(EXAMPLE)
    recipe = make_recipe(str(path), [ClassInfo(1, "nucleus"), ClassInfo(2, "membrane")], steps=None, seed=0)
    assert recipe.config["num_classes"] == 3


def test_every_field_of_it_is_explained() -> None:
    said = set(re.findall(r"`([\w.]+)`", PAGE.replace(EXAMPLE, "")))
    assert sorted(set(_fields(json.loads(EXAMPLE))) - said) == []


def _fields(value: Any) -> Iterator[str]:
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _fields(inner)
    yield from value if isinstance(value, dict) else ()
