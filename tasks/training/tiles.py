"""Large pictures as training meets them: the tiles that inference looks at, as examples of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np

from modelkit import rle
from modelkit.augmentation.geometry import MIN_VISIBLE
from modelkit.tiling import Tiling, Window
from tasks.training.examples import Box, Example, ExampleObject, moved_points, moved_surface


def tiles_of(examples: Sequence[Example], tiling: Tiling, things: Collection[int]) -> list[Example]:
    """Examples of pictures that are larger than a tile as examples of their tiles; the others stay as they are.

    A thing of which less than a fifth lies in a tile is an ignored region there. Of the tiles of a picture that show
    nothing at all no more are kept than of those that show something, at least one.

    Args:
        examples: whole pictures.
        tiling: of the model's transform.
        things: class ids of countable objects.
    """
    return [tile for example in examples for tile in _tiles(example, tiling, frozenset(things))]


def _tiles(example: Example, tiling: Tiling, things: frozenset[int]) -> list[Example]:
    if tiling.is_one_tile(example.size_hw):
        return [example]
    tiles = [tile_of(example, window, things) for window in tiling.windows(example.size_hw)]
    full = [tile for tile in tiles if tile.objects or tile.ignore_boxes]
    empty = [tile for tile in tiles if not tile.objects and not tile.ignore_boxes]
    kept = np.unique(np.linspace(0, len(empty) - 1, min(len(empty), max(1, len(full)))).round().astype(int))
    return [*full, *(empty[k] for k in kept.tolist())]


def tile_of(example: Example, window: Window, things: Collection[int]) -> Example:
    """What of an example lies in a window, in pixels of that."""
    whole_hw = example.size_hw
    masks = [each.rle for each in example.objects if each.rle is not None]
    cut, areas = iter(_moved(masks, whole_hw, window)), iter(rle.areas(masks).tolist() if masks else ())
    objects: list[ExampleObject] = []
    ignored = list(_inside(example.ignore_boxes, window))
    for each in example.objects:
        inside = next(_inside([each.box_xyxy], window), None)
        mask, area = (None, 0) if each.rle is None else (next(cut), next(areas))
        if inside is None or (mask is not None and not rle.area(mask)):
            continue
        share = _area(inside) / max(_area(each.box_xyxy), 1e-9) if mask is None else rle.area(mask) / max(area, 1)
        if share < MIN_VISIBLE and each.label in things:
            ignored.append(inside)
            continue
        box = inside if mask is None else _box(rle.bbox(mask, window.size_hw))
        points, surface = moved_points(each.keypoint_xyv, window), moved_surface(each.surface_points, window)
        objects.append(replace(each, box_xyxy=box, rle=mask, keypoint_xyv=points, surface_points=surface))
    void, unsure = (
        None if mask is None else _moved([mask], whole_hw, window)[0] for mask in (example.void_rle, example.unsure_rle)
    )
    return replace(
        example,
        size_hw=window.size_hw,
        objects=tuple(objects),
        ignore_boxes=tuple(ignored),
        void_rle=void,
        unsure_rle=unsure,
        window=window,
        picture_hw=whole_hw,
    )


def _moved(masks: Sequence[bytes], whole_hw: tuple[int, int], window: Window) -> list[bytes]:
    return rle.moved(masks, whole_hw, (-window.top, -window.left), window.size_hw)


def _inside(boxes: Sequence[Box], window: Window) -> Iterator[Box]:
    """What of boxes lies in a window, in pixels of that; those that do not reach into it are left out."""
    rows, columns = window.size_hw
    for x0, y0, x1, y1 in boxes:
        box = (
            max(0.0, x0 - window.left), max(0.0, y0 - window.top),
            min(float(columns), x1 - window.left), min(float(rows), y1 - window.top),
        )  # fmt: skip
        if box[2] > box[0] and box[3] > box[1]:
            yield box


def _box(values: np.ndarray) -> Box:
    x0, y0, x1, y1 = (float(value) for value in values)
    return x0, y0, x1, y1


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
