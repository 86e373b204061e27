"""Digitscape: the seeded source of scenes and clips."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from modelkit.digitscape.backgrounds import compose_background, luminance
from modelkit.digitscape.errors import DigitscapeError
from modelkit.digitscape.glyphs import LANDMARK_NAMES, Glyph, draw_glyph
from modelkit.digitscape.rendering import Paint, Pose, Stamp, finish_image, make_matrix, paint, stamp
from modelkit.digitscape.scene import Scene
from modelkit.digitscape.sources import SPLITS, Split, check_split, load_pictures

_MAX_DIGITS = 60
_PLACEMENT_TRIES = 12
_MIN_SIDE_PX = 32


@dataclass(frozen=True, slots=True)
class SceneStyle:
    """How scenes look; the defaults are the published difficulty that metrics refer to.

    Args:
        digits: fewest and most digits of a scene that is not empty.
        empty_share: probability of a scene without digits.
        size_px: longer side of a digit; drawn log-uniformly.
        angle_deg, shear, aspect_log: half ranges of the affine distortion.
        bend_px: strength of the elastic distortion in glyph pixels.
        threshold: range of the stroke threshold, lower is thicker.
        overlap: largest share of a digit's outline that another may cover when placed.
        min_visibility: a digit is not placed where it would leave less of itself or of another visible.
        min_contrast: least difference of luma between ink and the background beneath it, before blending.
        opacity: range of ink opacity.
        noise_std: largest sensor noise in grey levels; blur_share: probability of blur.
        plain_share, max_regions: see ``compose_background``.
    """

    digits: tuple[int, int] = (1, 8)
    empty_share: float = 0.05
    size_px: tuple[float, float] = (24.0, 96.0)
    angle_deg: float = 20.0
    shear: float = 0.2
    aspect_log: float = 0.2
    bend_px: float = 0.9
    threshold: tuple[float, float] = (0.18, 0.42)
    overlap: float = 0.35
    min_visibility: float = 0.6
    min_contrast: float = 70.0
    opacity: tuple[float, float] = (0.85, 1.0)
    noise_std: float = 8.0
    blur_share: float = 0.3
    plain_share: float = 0.15
    max_regions: int = 3

    def __post_init__(self) -> None:
        low, high = self.digits
        if not 1 <= low <= high <= _MAX_DIGITS:
            raise DigitscapeError(f"digits must be a range within 1..{_MAX_DIGITS}, got {self.digits}")
        if not 8 <= self.size_px[0] <= self.size_px[1]:
            raise DigitscapeError(f"size_px must be a range from 8 upwards, got {self.size_px}")


STYLES = {
    "default": SceneStyle(),
    "hard": SceneStyle(
        digits=(2, 10),
        empty_share=0.03,
        size_px=(22.0, 100.0),
        angle_deg=24.0,
        shear=0.25,
        aspect_log=0.25,
        bend_px=1.1,
        threshold=(0.16, 0.45),
        overlap=0.4,
        min_contrast=60.0,
        opacity=(0.8, 1.0),
        noise_std=10.0,
        plain_share=0.2,
        max_regions=4,
    ),
}
"""By name: the published difficulty, and what the shipped model and the recipes of the docs are trained on."""


@dataclass(frozen=True, slots=True)
class _Camera:
    """What happens to every frame of one scene or clip after drawing."""

    blur: float
    noise_std: float
    gain: float
    offset: float


@dataclass(frozen=True, slots=True)
class _Actor:
    """A digit with its look, the poses it takes (one per frame) and its stamp in the first."""

    glyph: Glyph
    look: Paint
    poses: tuple[Pose, ...]
    track_id: int
    first: Stamp


@dataclass(frozen=True, slots=True)
class Digitscape:
    """An endless, seeded supply of scenes: the same arguments give the same bytes.

    Args:
        split: "train", "val" or "test"; the three share neither digits nor photographs.
        size_hw: rows and columns of every scene, at least 32.
        seed: another seed gives other scenes from the same digits and photographs.
        style: difficulty.
        dense: also compute UV and flow.

    Raises:
        DigitscapeError: for an unknown split, a negative seed or too small a size.
    """

    split: Split = "train"
    size_hw: tuple[int, int] = (160, 160)
    seed: int = 0
    style: SceneStyle = field(default_factory=SceneStyle)
    dense: bool = True

    def __post_init__(self) -> None:
        check_split(self.split)
        if min(self.size_hw) < _MIN_SIDE_PX:
            raise DigitscapeError(f"size_hw must be at least {_MIN_SIDE_PX} a side, got {self.size_hw}")
        if self.seed < 0:
            raise DigitscapeError(f"seed must not be negative, got {self.seed}")

    def scene(self, index: int) -> Scene:
        """Compose scene ``index`` (0, 1, ...)."""
        return self._compose(self._generator(index, kind=0), num_frames=1)[0]

    def clip(self, index: int, num_frames: int) -> list[Scene]:
        """Compose clip ``index``: digits on smooth paths over a panning background, with track ids and flow."""
        if num_frames < 1:
            raise DigitscapeError(f"a clip needs at least one frame, got {num_frames}")
        return self._compose(self._generator(index, kind=1), num_frames)

    def _generator(self, index: int, kind: int) -> np.random.Generator:
        if index < 0:
            raise DigitscapeError(f"scenes are numbered from 0, got {index}")
        return np.random.Generator(np.random.SFC64([self.seed, SPLITS.index(self.split), kind, index]))

    def _compose(self, rng: np.random.Generator, num_frames: int) -> list[Scene]:
        style, size_hw = self.style, self.size_hw
        pans = _draw_pans(rng, num_frames)
        canvas_hw = (size_hw[0] + int(pans[:, 1].max()), size_hw[1] + int(pans[:, 0].max()))
        background, stuff = compose_background(
            rng, load_pictures(self.split), canvas_hw, style.plain_share, style.max_regions
        )
        actors = self._cast(rng, background, num_frames)
        camera = _draw_camera(rng, style)
        return [
            self._render(rng, background, stuff, pans, actors, camera, frame, num_frames) for frame in range(num_frames)
        ]

    def _cast(self, rng: np.random.Generator, background: np.ndarray, num_frames: int) -> list[_Actor]:
        """Draw digits and place them one by one, so that none hides another in the first frame."""
        style, size_hw = self.style, self.size_hw
        wanted = 0 if rng.random() < style.empty_share else int(rng.integers(style.digits[0], style.digits[1] + 1))
        actors: list[_Actor] = []
        outlines: list[tuple[float, float, float, float]] = []
        owner = np.zeros(size_hw, np.uint8)
        totals: list[int] = []
        for _ in range(wanted):
            glyph = draw_glyph(rng, self.split, style.bend_px, style.threshold)
            pose = _place(rng, glyph, style, size_hw, outlines)
            drawn = stamp(glyph, pose, size_hw) if pose is not None else None
            if pose is None or drawn is None or not _keeps_visible(owner, drawn, totals, style.min_visibility):
                continue
            owner[drawn.window][drawn.ink] = len(actors) + 1
            totals.append(drawn.total_px)
            outlines.append(pose.outline_xyxy(glyph))
            look = _draw_look(rng, style, background[: size_hw[0], : size_hw[1]], drawn)
            poses = (pose,) if num_frames == 1 else _draw_path(rng, pose, num_frames)
            actors.append(_Actor(glyph, look, poses, len(actors), drawn))
        return actors

    def _render(
        self,
        rng: np.random.Generator,
        background: np.ndarray,
        stuff: np.ndarray,
        pans: np.ndarray,
        actors: list[_Actor],
        camera: _Camera,
        frame: int,
        num_frames: int,
    ) -> Scene:
        height, width = self.size_hw
        pan_x, pan_y = (int(v) for v in pans[frame])
        window = (slice(pan_y, pan_y + height), slice(pan_x, pan_x + width))
        image = background[window].copy()
        owner = np.zeros(self.size_hw, np.uint8)
        stamps = [
            actor.first if frame == 0 else stamp(actor.glyph, actor.poses[frame], self.size_hw) for actor in actors
        ]
        for number, (actor, drawn) in enumerate(zip(actors, stamps, strict=True), start=1):
            if drawn is not None:
                paint(image, drawn, actor.look)
                owner[drawn.window][drawn.ink] = number
        uv = flow = None
        if self.dense:
            uv = _uv_map(owner, actors, stamps)
            if frame + 1 < num_frames:
                flow = _flow_map(owner, actors, stamps, frame, pans)
        finished = finish_image(rng, image, camera.blur, camera.noise_std, camera.gain, camera.offset)
        return _collect(finished, owner, stuff[window].copy(), actors, stamps, frame, uv, flow)


def _draw_pans(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """(num_frames, 2) int64 window offsets (x, y), all non-negative; whole pixels keep the flow exact."""
    if num_frames == 1:
        return np.zeros((1, 2), np.int64)
    speed = rng.uniform(-2.0, 2.0, 2)
    pans = np.rint(np.arange(num_frames)[:, None] * speed).astype(np.int64)
    return pans - pans.min(axis=0)


def _draw_camera(rng: np.random.Generator, style: SceneStyle) -> _Camera:
    blur = float(rng.uniform(0.08, 0.3)) if rng.random() < style.blur_share else 0.0
    noise_std = float(rng.uniform(0.0, style.noise_std)) if rng.random() < 0.7 else 0.0
    return _Camera(blur, noise_std, float(rng.uniform(0.8, 1.2)), float(rng.uniform(-20, 20)))


def _place(
    rng: np.random.Generator,
    glyph: Glyph,
    style: SceneStyle,
    size_hw: tuple[int, int],
    outlines: list[tuple[float, float, float, float]],
) -> Pose | None:
    """A random pose whose outline meets no other by more than the style allows; None when none was found."""
    low, high = style.size_px
    size_px = math.exp(rng.uniform(math.log(low), math.log(min(high, 0.9 * min(size_hw)))))
    matrix = make_matrix(
        size_px / glyph.extent_px,
        math.radians(rng.uniform(-style.angle_deg, style.angle_deg)),
        rng.uniform(-style.shear, style.shear),
        math.exp(rng.uniform(-style.aspect_log, style.aspect_log)),
    )
    half = np.array(Pose(matrix, np.zeros(2)).outline_xyxy(glyph)[2:])
    inset = 0.8 * half  # up to a tenth of the digit may leave the image at each side
    allowed = style.overlap if rng.random() < 0.4 else 0.05
    tries = rng.uniform(size=(_PLACEMENT_TRIES, 2)) * (np.array(size_hw[::-1]) - 2 * inset) + inset
    if not outlines:
        return Pose(matrix, tries[0])
    others = np.array(outlines)
    low_xy, high_xy = (tries - half)[:, None], (tries + half)[:, None]
    sides = np.minimum(high_xy, others[None, :, 2:]) - np.maximum(low_xy, others[None, :, :2])
    shared = np.clip(sides, 0, None).prod(axis=2)
    smaller = np.minimum(4 * half.prod(), (others[:, 2:] - others[:, :2]).prod(axis=1))
    free = np.flatnonzero((shared / smaller).max(axis=1) <= allowed)
    return Pose(matrix, tries[free[0]]) if len(free) else None


def _keeps_visible(owner: np.ndarray, drawn: Stamp, totals: list[int], min_visibility: float) -> bool:
    if drawn.ink.sum() < min_visibility * drawn.total_px:
        return False
    covered = np.bincount(owner[drawn.window][drawn.ink], minlength=len(totals) + 1)[1:]
    if not covered.any():
        return True
    visible = np.bincount(owner.ravel(), minlength=len(totals) + 1)[1:] - covered
    return bool((visible >= min_visibility * np.array(totals)).all())


def _draw_look(rng: np.random.Generator, style: SceneStyle, background: np.ndarray, drawn: Stamp) -> Paint:
    """A colour that stands out from what lies beneath; very bright or dark when a random one does not."""
    beneath = background[drawn.window][drawn.ink]
    ground = float(luminance(beneath).mean()) if len(beneath) else 128.0
    colour = rng.uniform(0, 255, 3).astype(np.float32)
    gap = float(luminance(colour)) - ground
    if abs(gap) < style.min_contrast:
        brighter = ground < 128 if abs(ground - 128) > 30 else gap > 0
        goal = ground + style.min_contrast * (1.2 if brighter else -1.2)
        colour = np.clip(colour + np.float32(goal - ground - gap), 0, 255)
    shade = rng.uniform(-0.25, 0.25, 2).astype(np.float32)
    return Paint(colour, shade, float(rng.uniform(*style.opacity)))


def _draw_path(rng: np.random.Generator, start: Pose, num_frames: int) -> tuple[Pose, ...]:
    """A drift with a gentle swing; the digit also turns and breathes a little."""
    velocity = rng.uniform(-2.5, 2.5, 2)
    swing, period = rng.uniform(0, 8, 2), rng.uniform(16, 48, 2)
    turn, pulse = rng.uniform(-0.15, 0.15), rng.uniform(-0.1, 0.1)
    poses: list[Pose] = []
    for frame in range(num_frames):
        phase = 2 * math.pi * frame / period
        wave = math.sin(float(phase[0]))
        motion = make_matrix(1 + pulse * wave, turn * wave, 0.0, 1.0)
        poses.append(Pose(motion @ start.matrix, start.position_xy + velocity * frame + swing * np.sin(phase)))
    return tuple(poses)


def _uv_map(owner: np.ndarray, actors: list[_Actor], stamps: list[Stamp | None]) -> np.ndarray:
    uv = np.full((*owner.shape, 2), np.nan, np.float32)
    for number, (actor, drawn) in enumerate(zip(actors, stamps, strict=True), start=1):
        if drawn is None:
            continue
        x0, y0, x1, y1 = actor.glyph.tight_xyxy
        seen = owner[drawn.window] == number
        patch = uv[drawn.window]
        patch[seen, 0] = np.clip((drawn.glyph_x[seen] - x0) / (x1 - x0), 0, 1)
        patch[seen, 1] = np.clip((drawn.glyph_y[seen] - y0) / (y1 - y0), 0, 1)
    return uv


def _flow_map(
    owner: np.ndarray, actors: list[_Actor], stamps: list[Stamp | None], frame: int, pans: np.ndarray
) -> np.ndarray:
    flow = np.empty((*owner.shape, 2), np.float32)
    flow[:] = (pans[frame] - pans[frame + 1]).astype(np.float32)
    for number, (actor, drawn) in enumerate(zip(actors, stamps, strict=True), start=1):
        if drawn is None:
            continue
        seen = owner[drawn.window] == number
        rows, columns = np.nonzero(seen)
        here = np.stack([columns + drawn.window[1].start, rows + drawn.window[0].start], axis=1)
        in_glyph = np.stack([drawn.glyph_x[seen], drawn.glyph_y[seen]], axis=1).astype(np.float64)
        flow[drawn.window][seen] = actor.poses[frame + 1].to_scene(actor.glyph, in_glyph) - here
    return flow


def _collect(
    image: np.ndarray,
    owner: np.ndarray,
    stuff: np.ndarray,
    actors: list[_Actor],
    stamps: list[Stamp | None],
    frame: int,
    uv: np.ndarray | None,
    flow: np.ndarray | None,
) -> Scene:
    """Keep the digits of which something is seen, renumbered from back to front."""
    counts = np.bincount(owner.ravel(), minlength=len(actors) + 1)
    shown = [k for k in range(len(actors)) if counts[k + 1]]
    renumber = np.zeros(len(actors) + 1, np.uint8)
    boxes = np.zeros((len(shown), 4), np.float32)
    landmarks = np.ones((len(shown), len(LANDMARK_NAMES), 3), np.float32)
    visibility = np.zeros(len(shown), np.float32)
    for position, k in enumerate(shown):
        drawn, actor = stamps[k], actors[k]
        assert drawn is not None  # a digit that owns pixels was drawn
        renumber[k + 1] = position + 1
        seen = owner[drawn.window] == k + 1
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        top, left = drawn.window[0].start, drawn.window[1].start
        boxes[position] = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
        visibility[position] = counts[k + 1] / drawn.total_px
        points = actor.poses[frame].to_scene(actor.glyph, actor.glyph.landmarks_xy)
        landmarks[position, :, :2] = points
        landmarks[position, :, 2] = 1 + _uncovered(owner, points, k + 1)
    return Scene(
        image_rgb=image,
        instance_map=renumber[owner],
        labels=np.array([actors[k].glyph.label for k in shown], np.int32),
        boxes_xyxy=boxes,
        visibility=visibility,
        track_ids=np.array([actors[k].track_id for k in shown], np.int64),
        landmarks=landmarks,
        stuff_map=stuff,
        uv=uv,
        flow_to_next=flow,
    )


def _uncovered(owner: np.ndarray, points_xy: np.ndarray, number: int) -> np.ndarray:
    """(k,) bool: the point lies on the image and no digit further to the front covers it."""
    columns, rows = np.rint(points_xy).astype(np.int64).T
    inside = (rows >= 0) & (rows < owner.shape[0]) & (columns >= 0) & (columns < owner.shape[1])
    seen = owner[np.clip(rows, 0, owner.shape[0] - 1), np.clip(columns, 0, owner.shape[1] - 1)]
    return inside & (seen <= number)
