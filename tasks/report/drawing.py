"""What a model found, drawn on its picture, for instances, semantic and panoptic maps, and tracks alike.

Things are outlined in vivid colours with their name on a plate beside them, stuff is filled in quiet colours with its
name written inside: a panoptic picture shows at a glance what is counted and what is ground. One colour per class, or
per track if there are any, for ever the same.

Small pictures are enlarged before anything is drawn, large ones reduced, so that outlines and text have the same size
everywhere. Masks are resized as grey levels and cut at one half: their outlines stay smooth at any size.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from modelkit.rle import bbox, decode

MAX_LABELS = 24

_FILL = 0.42  # share of the colour inside of a mask
_STUFF_FILL = 0.55
_STUFF_EDGE = 0.9  # on the one pixel that separates two regions
_LEAST_STUFF_SHARE = 0.004  # of the picture: smaller regions get no name
_COARSE_SIDE = 64  # cells of the grid on which a place inside of a region is looked for
_MAX_ENLARGEMENT = 8.0
_OUTLINE_PX = 3
_LINE_PX = 2
_PADDING_PX = 3
_RIM = (20, 24, 30)

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class DrawnObject:
    """One instance to draw.

    Args:
        name: of the class.
        label: class id; decides the colour unless there is a track.
        score: in [0, 1], or None for ground truth.
        box_xyxy: in source pixels.
        rle: compressed run lengths of the mask, None for models without masks.
        track_id: identity across frames; decides the colour, so an object keeps it through a video.
        is_thing: stuff (False) has no score, track or outline of interest: only its class.
    """

    name: str
    label: int
    score: float | None
    box_xyxy: Box
    rle: bytes | None = None
    track_id: int | None = None
    is_thing: bool = True

    @property
    def text(self) -> str:
        """What stands beside it: ``disc 0.93``, with a track ``disc #3 0.93``; of stuff the name alone."""
        if not self.is_thing:
            return self.name
        track = "" if self.track_id is None else f" #{self.track_id}"
        return f"{self.name}{track}" + ("" if self.score is None else f" {self.score:.2f}")

    @property
    def colour(self) -> Colour:
        if not self.is_thing:
            return stuff_colour_of(self.label)
        return colour_of(self.label) if self.track_id is None else colour_of(self.track_id + 101)


def colour_of(number: int) -> Colour:
    """A vivid RGB colour (0-255) for a class or track; neighbours in number are far apart in hue, for ever the same."""
    return _colour(number, 0.53 if number % 2 else 0.47, 0.85)


def stuff_colour_of(label: int) -> Colour:
    """The quiet RGB colour (0-255) of a class of stuff: of the same hue as ``colour_of``, greyer."""
    return _colour(label, (0.40, 0.58, 0.49)[label % 3], 0.45)


def _colour(number: int, lightness: float, saturation: float) -> Colour:
    hue = (number * 0.618033988749895 + 0.58) % 1.0
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


def resized(image_rgb_hwc_u8: np.ndarray, *, long_side_px: int = 640) -> np.ndarray:
    """An (H, W, 3) uint8 picture at the size in which pictures are shown; small ones are enlarged eightfold at most."""
    height, width = image_rgb_hwc_u8.shape[:2]
    scale = _scale((height, width), long_side_px)
    size_wh = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image_rgb_hwc_u8).resize(size_wh, Image.Resampling.LANCZOS))


def _scale(size_hw: tuple[int, int], long_side_px: int) -> float:
    return min(long_side_px / max(size_hw), _MAX_ENLARGEMENT)


def draw_objects(
    image_rgb_hwc_u8: np.ndarray, instances: Sequence[DrawnObject], *, long_side_px: int = 640, labels: bool = True
) -> np.ndarray:
    """A picture with its instances on it.

    Args:
        image_rgb_hwc_u8: (H, W, 3) uint8; masks and boxes are in its pixels.
        instances: in any order; stuff is drawn first, then the largest things, so that small ones stay visible.
        long_side_px: longer side of the result; small pictures are enlarged eightfold at most.
        labels: whether names are written (for the 24 surest instances that find room).

    Returns:
        (H', W', 3) uint8.
    """
    height, width = image_rgb_hwc_u8.shape[:2]
    scale = _scale((height, width), long_side_px)
    canvas = resized(image_rgb_hwc_u8, long_side_px=long_side_px).astype(np.float32)
    size_wh = (canvas.shape[1], canvas.shape[0])
    for one in sorted(instances, key=lambda one: (one.is_thing, -_extent(one))):
        if one.rle is not None:
            _paint_mask(canvas, one, (height, width), scale)
    picture = Image.fromarray(canvas.round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for one in instances:
        if one.rle is None:
            pen.rectangle([value * scale for value in one.box_xyxy], outline=one.colour, width=_LINE_PX)
    if labels:
        _write_labels(pen, size_wh, instances, scale, (height, width))
    return np.asarray(picture)


def _extent(one: DrawnObject) -> float:
    x0, y0, x1, y1 = one.box_xyxy
    return (x1 - x0) * (y1 - y0)


def _paint_mask(canvas: np.ndarray, one: DrawnObject, size_hw: tuple[int, int], scale: float) -> None:
    """Blend one mask into its own corner of the canvas."""
    assert one.rle is not None
    x0, y0, x1, y1 = bbox(one.rle, size_hw).astype(int).tolist()
    if x1 <= x0 or y1 <= y0:
        return
    margin = 2 + round(2 / scale)  # source pixels around it, so that the outline has room
    x0, y0 = max(0, x0 - margin), max(0, y0 - margin)
    x1, y1 = min(size_hw[1], x1 + margin), min(size_hw[0], y1 + margin)
    left, top = round(x0 * scale), round(y0 * scale)
    right, bottom = min(canvas.shape[1], round(x1 * scale)), min(canvas.shape[0], round(y1 * scale))
    if right <= left or bottom <= top:
        return
    grey = Image.fromarray(decode(one.rle, size_hw)[y0:y1, x0:x1].astype(np.uint8) * 255)
    resized = grey.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    if scale > 1:  # source pixels have become blocks: round their corners
        resized = resized.filter(ImageFilter.GaussianBlur(0.45 * scale))
    mask = resized.point(lambda level: 255 * (level > 127))
    inside = np.asarray(mask, bool)
    window = canvas[top:bottom, left:right]
    colour = np.asarray(one.colour, np.float32)
    share = _FILL if one.is_thing else _STUFF_FILL
    window[inside] = (1 - share) * window[inside] + share * colour
    if not one.is_thing:
        edge = inside & ~np.asarray(mask.filter(ImageFilter.MinFilter(3)), bool)
        window[edge] = (1 - _STUFF_EDGE) * window[edge] + _STUFF_EDGE * colour
    else:
        eroded = np.asarray(_eroded(mask), bool)
        window[inside & ~eroded] = colour
        halo = ~inside & np.asarray(mask.filter(ImageFilter.MaxFilter(_OUTLINE_PX)), bool)
        window[halo] = 0.35 * window[halo]  # a dark rim separates equal colours that touch


def _eroded(mask: Image.Image) -> Image.Image:
    """Smaller by the outline's width; the canvas' edge counts as inside, there is nothing to outline against."""
    framed = Image.new("L", (mask.width + 2 * _OUTLINE_PX, mask.height + 2 * _OUTLINE_PX), 255)
    framed.paste(mask, (_OUTLINE_PX, _OUTLINE_PX))
    small = framed.filter(ImageFilter.MinFilter(2 * (_OUTLINE_PX // 2) + 1)).filter(ImageFilter.MinFilter(3))
    return small.crop((_OUTLINE_PX, _OUTLINE_PX, _OUTLINE_PX + mask.width, _OUTLINE_PX + mask.height))


def _write_labels(
    pen: ImageDraw.ImageDraw,
    size_wh: tuple[int, int],
    instances: Sequence[DrawnObject],
    scale: float,
    size_hw: tuple[int, int],
) -> None:
    """Things first, the surest ones before others, then names of stuff into what room is left."""
    things = [one for one in instances if one.is_thing]
    lines = 34 if len(things) > MAX_LABELS // 2 else 25 if all(one.score is None for one in things) else 29
    font = ImageFont.load_default(size=max(12, min(26, round(max(size_wh) / lines))))
    taken: list[Box] = []
    things.sort(key=lambda one: 1.0 if one.score is None else one.score, reverse=True)
    for one in things[:MAX_LABELS]:
        _write_beside(pen, size_wh, one, scale, font, taken)
    stuff = [one for one in instances if not one.is_thing and one.rle is not None]
    for one in sorted(stuff, key=_extent, reverse=True)[:MAX_LABELS]:
        _write_inside(pen, size_wh, one, size_hw, font, taken)


def _write_beside(
    pen: ImageDraw.ImageDraw,
    size_wh: tuple[int, int],
    one: DrawnObject,
    scale: float,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    taken: list[Box],
) -> None:
    """On a plate of its colour, above, inside or below its box; left out where all of these are taken."""
    left, top, right, bottom = pen.textbbox((0, 0), one.text, font=font)
    width, height = right - left + 2 * _PADDING_PX, bottom - top + 2 * _PADDING_PX
    x0, y0, _, y1 = (value * scale for value in one.box_xyxy)
    x = max(0.0, min(x0, size_wh[0] - width))
    for y in (y0 - height, y0 + 1, y1, y1 - height):
        box = (x, y, x + width, y + height)
        if y >= 0 and y + height <= size_wh[1] and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            pen.rounded_rectangle(box, radius=3, fill=one.colour)
            at = (x + _PADDING_PX - left, y + _PADDING_PX - top)
            pen.text(at, one.text, font=font, fill=_readable_on(one.colour))
            return


def _write_inside(
    pen: ImageDraw.ImageDraw,
    size_wh: tuple[int, int],
    one: DrawnObject,
    size_hw: tuple[int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    taken: list[Box],
) -> None:
    """White with a dark rim, where the region has most room and nothing is written yet."""
    assert one.rle is not None
    left, top, right, bottom = pen.textbbox((0, 0), one.text, font=font, stroke_width=2)
    width, height = right - left, bottom - top
    for share_x, share_y in _places_inside(decode(one.rle, size_hw)):
        x = max(0.0, min(share_x * size_wh[0] - width / 2, size_wh[0] - width))
        y = max(0.0, min(share_y * size_wh[1] - height / 2, size_wh[1] - height))
        box = (x, y, x + width, y + height)
        if not any(_overlap(box, other) for other in taken):
            taken.append(box)
            pen.text((x - left, y - top), one.text, font=font, fill=(255, 255, 255), stroke_width=2, stroke_fill=_RIM)
            return


def _places_inside(mask: np.ndarray) -> list[tuple[float, float]]:
    """Places (x, y as shares of the sides) in an (H, W) mask, the farthest from its border first; [] if it is tiny."""
    if mask.mean() < _LEAST_STUFF_SHARE:
        return []
    height, width = mask.shape
    cells = max(1, -(-max(height, width) // _COARSE_SIDE))
    level = np.pad(mask[cells // 2 :: cells, cells // 2 :: cells], 1)
    depth = np.zeros(level.shape, np.int32)
    while level.any():
        depth += level
        inner = level.copy()
        inner[1:-1, 1:-1] &= level[:-2, 1:-1] & level[2:, 1:-1] & level[1:-1, :-2] & level[1:-1, 2:]
        inner[[0, -1]] = inner[:, [0, -1]] = False
        level = inner
    depth = depth[1:-1, 1:-1]
    rows, columns = np.nonzero(depth)
    away = (rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2
    order = np.lexsort((away, -depth[rows, columns]))  # of equally good places the one nearest to the middle
    return [
        ((columns[cell] * cells + cells // 2 + 0.5) / width, (rows[cell] * cells + cells // 2 + 0.5) / height)
        for cell in order.tolist()
    ]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _readable_on(colour: Colour) -> Colour:
    """Black or white, whichever contrasts more (relative luminance of WCAG 2)."""
    linear = [(value / 255 / 12.92) if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)
