"""An object cut out of its picture, with labelled points beside those that were found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from modelkit.carriers.landmarks import KeypointSet, Landmarks
from tasks.products.landmarks.overlay import overlay
from tasks.products.landmarks.rows import columns

_TRUTH, _RIM = (57, 211, 83), (20, 24, 30)
_MARGIN = 0.15  # of the larger side of what must be seen, on each side of it
_LONG_SIDE_PX = 480
_FINER = 2  # drawn larger and reduced, so that lines are smooth
_ARM_SHARE, _ARM_PX = 0.009, (3.0, 6.0)  # half a cross, of the longer side


@dataclass(frozen=True, slots=True)
class ErrorPicture:
    """Draws one object; called with the (H, W, 3) uint8 picture that it lies in.

    Args:
        found: one object with the labels' points, in the picture's pixels.
        name: of its class as labelled.
        true_xyv: (K, 3). box_xyxy: (4,), as labelled.
    """

    points: KeypointSet
    found: Landmarks
    name: str
    true_xyv: np.ndarray
    box_xyxy: np.ndarray

    def __call__(self, image_rgb_hwc_u8: np.ndarray) -> np.ndarray:
        x0, y0, x1, y1 = self._window(*image_rgb_hwc_u8.shape[:2])
        cut = image_rgb_hwc_u8[y0:y1, x0:x1]
        corner = np.array([x0, y0], np.float32)
        moved = replace(
            self.found,
            size_hw=(y1 - y0, x1 - x0),
            boxes_xyxy=self.found.boxes_xyxy - np.tile(corner, 2),
            keypoints_xy=self.found.keypoints_xy - corner,
            keypoint_set=self.points,
        )
        names = {int(self.found.labels[0]): self.name}
        row = {name: column[0].as_py() for name, column in columns([moved], names).items()}
        drawn = overlay(cut, row, in_strip=True, long_side_px=_LONG_SIDE_PX)
        scale = drawn.shape[1] / cut.shape[1]
        return self._with_truth(drawn, (self.true_xyv[:, :2] - corner) * scale, moved.keypoints_xy[0] * scale)

    def _window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 of what is cut out: labels, and finds that are not too far away, with a margin."""
        labelled = self.true_xyv[self.true_xyv[:, 2] > 0, :2]
        seen = np.concatenate([self.box_xyxy.reshape(2, 2), labelled])
        low, high = seen.min(0), seen.max(0)
        reach = float((high - low).max())
        found = self.found.keypoints_xy[0]
        near = found[((found >= low - reach / 2) & (found <= high + reach / 2)).all(1)]
        low, high = (np.concatenate([near, [each]]) for each in (low, high))
        low, high = low.min(0) - _MARGIN * reach, high.max(0) + _MARGIN * reach
        x0, y0 = np.clip(np.floor(low), 0, [width - 1, height - 1]).astype(int).tolist()
        x1, y1 = np.clip(np.ceil(high), [x0 + 1, y0 + 1], [width, height]).astype(int).tolist()
        return x0, y0, x1, y1

    def _with_truth(self, picture: np.ndarray, true_xy: np.ndarray, found_xy: np.ndarray) -> np.ndarray:
        """The picture with crosses at the labelled points, and a line from each to where it was found."""
        height, width = picture.shape[:2]
        layer = Image.new("RGBA", (width * _FINER, height * _FINER))
        pen = ImageDraw.Draw(layer)
        arm = _FINER * min(max(_ARM_SHARE * max(height, width), _ARM_PX[0]), _ARM_PX[1])
        for true, found, v in zip(_FINER * true_xy, _FINER * found_xy, self.true_xyv[:, 2], strict=True):
            if v > 0:
                ends = [(*true, *found)] if np.isfinite(found).all() else []
                _strokes(pen, ends, width=3)
                x, y = true
                _strokes(pen, [(x - arm, y - arm, x + arm, y + arm), (x - arm, y + arm, x + arm, y - arm)], width=4)
        small = layer.resize((width, height), Image.Resampling.BOX)
        return np.asarray(Image.alpha_composite(Image.fromarray(picture).convert("RGBA"), small).convert("RGB"))


def _strokes(pen: ImageDraw.ImageDraw, strokes: Sequence[tuple[float, ...]], *, width: int) -> None:
    """Green lines with a dark rim."""
    for colour, wide in ((_RIM, width + 3), (_TRUTH, width)):
        for stroke in strokes:
            pen.line(stroke, fill=(*colour, 255), width=wide)
