"""What was found in an item, drawn upon its picture: boxes with names, skeletons, points by side, surfaces in colours.

Points on the left of an object are blue, those on the right orange, others yellow, so that an exchange of sides is seen
at once. A point that the model is unsure of, or that something hides, is a ring. The parts of a surface have a colour
each; U makes it lighter, V paler, so that lines of equal U and V can be followed by eye.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tasks.products.landmarks.surfaces import surface_from_png
from tasks.report.drawing import DrawnObject, colour_of, draw_objects

LEFT, RIGHT, MIDDLE = (45, 156, 255), (255, 122, 26), (255, 221, 51)
UNSURE = 0.3
"""A point that scores less is drawn as a ring."""
_RIM = (20, 24, 30)
_LONG_SIDE_PX = 640
_FINER = 2  # lines are drawn larger and reduced, so that they are smooth
_SURFACE_SHARE = 0.65
_RADIUS = (1.8, 5.0)  # of points, pixels of the result
_RADIUS_SHARE = 0.022  # of the root of the box's area

Colour = tuple[int, int, int]


def overlay(
    image_rgb_hwc_u8: np.ndarray, row: Mapping[str, Any], *, in_strip: bool = False, long_side_px: int = _LONG_SIDE_PX
) -> np.ndarray:
    """An (H, W, 3) uint8 picture with the objects of its row.

    Args:
        image_rgb_hwc_u8: (H, W, 3) uint8.
        row: of ``items``.
        in_strip: side by side with its neighbours in time: there scores would only flicker.
        long_side_px: of the result; small pictures are enlarged eightfold at most.
    """
    painted = _with_surfaces(image_rgb_hwc_u8, row)
    picture = draw_objects(painted, _boxes(row, scores=not in_strip), long_side_px=long_side_px)
    scale = picture.shape[1] / image_rgb_hwc_u8.shape[1]
    return _with_points(picture, row, scale)


def side_colours(names: Sequence[str], flip_pairs: Sequence[Sequence[int]]) -> list[Colour]:
    """The colour of each point by its side."""
    colours = [MIDDLE] * len(names)
    for left, right in flip_pairs:
        colours[left], colours[right] = LEFT, RIGHT
    return colours


def _boxes(row: Mapping[str, Any], *, scores: bool) -> list[DrawnObject]:
    return [
        DrawnObject(
            name=row["names"][place],
            label=label,
            score=row["scores"][place] if scores else None,
            box_xyxy=tuple(row["boxes_xyxy"][place]),
            track_id=row["track_ids"][place] if row["track_ids"] is not None else None,
        )
        for place, label in enumerate(row["labels"] or ())
    ]


def _with_surfaces(image: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
    """The picture, (H, W, 3) uint8, with the surfaces of its objects, the surest one on top."""
    if not row["surfaces"]:
        return image
    painted = image.astype(np.float32)
    for data, origin in list(zip(row["surfaces"], row["surface_origins_xy"], strict=True))[::-1]:
        surface = surface_from_png(data, tuple(origin))
        x, y = surface.origin_xy
        left, top = max(0, -x), max(0, -y)
        window = painted[max(0, y) : y + len(surface.parts), max(0, x) : x + surface.parts.shape[1]]
        rows, columns = window.shape[:2]
        parts = surface.parts[top : top + rows, left : left + columns]
        uv = surface.uv[:, top : top + rows, left : left + columns]
        inside = parts > 0
        colours = surface_colours(parts, uv)[inside]
        window[inside] = (1 - _SURFACE_SHARE) * window[inside] + _SURFACE_SHARE * colours
    return np.asarray(painted.round().clip(0, 255).astype(np.uint8))


def surface_colours(parts: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """(h, w, 3) float32 in 0 .. 255 of parts (h, w) uint8 and uv (2, h, w) uint8."""
    palette = np.array([colour_of(part) for part in range(256)], np.float32)
    u, v = uv.astype(np.float32)[..., None] / 255
    bright = palette[parts] * (0.45 + 0.55 * u)
    return np.asarray(bright + 0.45 * v * (255 - bright))


def _with_points(picture: np.ndarray, row: Mapping[str, Any], scale: float) -> np.ndarray:
    """The picture with points and the lines between them."""
    said = row["keypoint_set"]
    if said is None or not row["labels"]:
        return picture
    height, width = picture.shape[:2]
    layer = Image.new("RGBA", (width * _FINER, height * _FINER))
    pen = ImageDraw.Draw(layer)
    colours = side_colours(said["names"], said["flip_pairs"])
    for place in reversed(range(len(row["labels"]))):  # the surest object on top
        radius = _radius(row["boxes_xyxy"][place], scale)
        points = [None if xy is None else tuple(_FINER * scale * value for value in xy)
                  for xy in row["keypoints_xy"][place]]  # fmt: skip
        sure = [score >= UNSURE and v == 2
                for score, v in zip(row["keypoint_scores"][place], row["visibility"][place], strict=True)]  # fmt: skip
        _draw_lines(pen, points, sure, said["skeleton"], colours, radius * _FINER)
        _draw_points(pen, points, sure, colours, radius * _FINER)
    small = layer.resize((width, height), Image.Resampling.BOX)
    return np.asarray(Image.alpha_composite(Image.fromarray(picture).convert("RGBA"), small).convert("RGB"))


def _radius(box_xyxy: Sequence[float], scale: float) -> float:
    x0, y0, x1, y1 = box_xyxy
    wanted = _RADIUS_SHARE * scale * max(0.0, (x1 - x0) * (y1 - y0)) ** 0.5
    return min(max(wanted, _RADIUS[0]), _RADIUS[1])


def _draw_lines(
    pen: ImageDraw.ImageDraw,
    points: Sequence[tuple[float, ...] | None],
    sure: Sequence[bool],
    skeleton: Sequence[Sequence[int]],
    colours: Sequence[Colour],
    radius: float,
) -> None:
    """A line of one side has its colour, one from side to side that of the middle; an unsure end makes it thin."""
    for start, end in skeleton:
        ends = points[start], points[end]
        if ends[0] is None or ends[1] is None:
            continue
        colour = colours[start] if colours[start] == colours[end] else MIDDLE
        if MIDDLE in (colours[start], colours[end]):  # from the middle to a side
            colour = colours[end] if colours[start] == MIDDLE else colours[start]
        wide = radius if sure[start] and sure[end] else radius / 2
        pen.line([*ends[0], *ends[1]], fill=(*_RIM, 150), width=round(wide + 3))
        pen.line([*ends[0], *ends[1]], fill=(*colour, 255), width=max(1, round(wide)))


def _draw_points(
    pen: ImageDraw.ImageDraw,
    points: Sequence[tuple[float, ...] | None],
    sure: Sequence[bool],
    colours: Sequence[Colour],
    radius: float,
) -> None:
    for point, is_sure, colour in zip(points, sure, colours, strict=True):
        if point is None:
            continue
        x, y = point
        box = (x - radius, y - radius, x + radius, y + radius)
        if is_sure:
            pen.ellipse(box, fill=(*colour, 255), outline=(*_RIM, 255), width=2)
        else:
            pen.ellipse(box, outline=(*colour, 255), width=3)
