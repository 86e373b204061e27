"""Look at labels before anything is trained: what they are like, what looks wrong, and the recipe they call for."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from flows.labels import fingerprints, labels_of
from flows.parameters import InspectParameters
from infra.store import open_store, split_uri
from infra.telling import tell
from tasks.labels.label_sets import LabelSet
from tasks.loop.groups import grouped
from tasks.loop.splits import join_near_duplicates
from tasks.product import find_kind
from tasks.training.inspection import inspect_labels
from tasks.training.presets import misfit, recipe_for

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
    prints = fingerprints(labels) if parameters.duplicates else None
    in_groups = labels if prints is None else grouped(labels, prints, parameters.group_rule)[0]
    seen = inspect_labels(in_groups)
    found = seen.to_json()
    suspicious = found.pop("suspicious_labels")
    duplicates = None if prints is None else joined_groups(labels, join_near_duplicates(labels, prints))
    return {
        "labelled": parameters.labelled,
        "labels": labels.to_json(),
        **found,
        "suspicious": {"count": len(suspicious), "first": suspicious[:SHOWN]},
        "group_rule": parameters.group_rule,
        "largest_groups": largest_groups(in_groups),
        "near_duplicates": None if duplicates is None else {"count": len(duplicates), "first": duplicates[:SHOWN]},
        "kind": recipe.kind,
        "remarks": [*filter(None, [misfit(recipe.kind, seen)]), *find_kind(recipe.kind).remarks(seen, recipe)],
        "recipe": recipe.to_json(),
        "saved": parameters.save,
    }


def joined_groups(labels: LabelSet, joined: LabelSet) -> list[list[str]]:
    """Groups of images that were joined, as near-duplicates, each sorted; frames of videos are left out."""
    before = Counter(labels.table["group_id"].to_pylist())
    return [ids for group, ids in sorted(_members(joined).items()) if len(ids) > before[group]]


def largest_groups(labels: LabelSet) -> list[dict[str, Any]]:
    """The groups of more than one image, the largest first: first and last image, and how many there are."""
    found = sorted((ids for ids in _members(labels).values() if len(ids) > 1), key=lambda ids: (-len(ids), ids))
    return [{"first": ids[0], "last": ids[-1], "images": len(ids)} for ids in found[:SHOWN]]


def _members(labels: LabelSet) -> dict[str, list[str]]:
    """Group -> its images, sorted."""
    members: dict[str, list[str]] = {}
    for image_id, group in sorted(
        zip(labels.table["image_id"].to_pylist(), labels.table["group_id"].to_pylist(), strict=True)
    ):
        members.setdefault(group, []).append(image_id)
    return members
