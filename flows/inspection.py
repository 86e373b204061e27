"""Look at labels before anything is trained: what they are like, what looks wrong, and the recipe they call for."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from flows.labels import labels_of, near_duplicates_joined
from flows.parameters import InspectParameters
from infra.store import open_store, split_uri
from infra.telling import tell
from tasks.labels.label_sets import LabelSet
from tasks.training.inspection import inspect_labels
from tasks.training.presets import recipe_for

SHOWN = 20
"""Suspicious labels and groups of near-duplicates in the summary; all are counted."""


def run_inspect(parameters: InspectParameters) -> dict[str, Any]:
    """What ``visionmill inspect`` prints; plain JSON.

    Raises:
        VisionmillError: labels that cannot be read, a recipe that makes no sense, a place that cannot be written to.
    """
    tell("reading the labels")
    labels = labels_of(parameters.labelled, parameters)
    tell("looking at the labels, deriving the recipe")
    recipe, labels = recipe_for(labels, parameters.recipe, steps=parameters.steps, seed=0, size=parameters.size)
    if parameters.save is not None:
        root, key = split_uri(parameters.save)
        open_store(root).put(key, json.dumps(recipe.to_json(), indent=1).encode())
    found = inspect_labels(labels).to_json()
    suspicious = found.pop("suspicious_labels")
    duplicates = near_duplicates(labels) if parameters.duplicates else None
    return {
        "labelled": parameters.labelled,
        "labels": labels.to_json(),
        **found,
        "suspicious": {"count": len(suspicious), "first": suspicious[:SHOWN]},
        "near_duplicates": None if duplicates is None else {"count": len(duplicates), "first": duplicates[:SHOWN]},
        "kind": recipe.kind,
        "recipe": recipe.to_json(),
        "saved": parameters.save,
    }


def near_duplicates(labels: LabelSet) -> list[list[str]]:
    """Groups of images that look the same, each sorted; frames of videos are left out: neighbours always do."""
    joined = near_duplicates_joined(labels).table
    groups = Counter(joined["group_id"].to_pylist())
    members: dict[str, list[str]] = {}
    for image_id, group in zip(joined["image_id"].to_pylist(), joined["group_id"].to_pylist(), strict=True):
        if groups[group] > 1:
            members.setdefault(group, []).append(image_id)
    before = Counter(labels.table["group_id"].to_pylist())
    return [sorted(ids) for group, ids in sorted(members.items()) if len(ids) > before[group]]
