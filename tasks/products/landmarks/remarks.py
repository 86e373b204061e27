"""What a recipe makes of labels with points, in words, for ``visionmill inspect``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tasks.training.inspection import Inspection
from tasks.training.recipe import TrainingRecipe


def point_remarks(seen: Inspection, recipe: TrainingRecipe) -> list[str]:
    """How large objects are to a top-down model, what is mirrored, which points nobody gave, what surfaces have."""
    return [*_on_size(seen, recipe), *_on_mirrors(seen), *_on_points(seen), *_on_surfaces(seen)]


def _on_size(seen: Inspection, recipe: TrainingRecipe) -> Iterator[str]:
    frame, margin = recipe.config.get("transform", {}).get("fixed_hw"), recipe.config.get("margin")
    if frame is None or margin is None or not len(seen.boxes_wh):
        return
    width, height = np.median(np.maximum(seen.boxes_wh, 1.0), axis=0) * margin
    factor = min(frame[0] / height, frame[1] / width)
    yield (
        f"the network sees {frame[0]} x {frame[1]} px of an object, the usual one with its margin has "
        f"{height:.0f} x {width:.0f} px in its picture: {'enlarged' if factor > 1 else 'reduced'}, factor {factor:.2f}"
    )


def _on_mirrors(seen: Inspection) -> Iterator[str]:
    if seen.points is not None and not seen.points.flip_pairs:
        yield "no names of points tell left from right, so pictures are not mirrored"


def _on_surfaces(seen: Inspection) -> Iterator[str]:
    labelled = seen.surface_points[seen.surface_points > 0]
    if len(labelled):
        yield (
            f"{len(labelled)} of {len(seen.surface_points)} objects have points of their surface, the usual one "
            f"{np.median(labelled):.0f}, on parts up to {seen.surface_parts}"
        )


def _on_points(seen: Inspection) -> Iterator[str]:
    if seen.points is None:
        return
    missing = [name for name, v in zip(seen.points.names, seen.points_given.T, strict=True) if not (v > 0).any()]
    if missing:
        yield f"nobody gave a place of {', '.join(missing)}: nothing is learnt of them"
