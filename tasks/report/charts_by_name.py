"""Charts with a row for each name, as inline SVG like those of ``charts``: intervals, spreads, offsets.

Rows are narrower where there are many, so that 68 names still stand on one screen; names are cut in the picture and
whole in the hover text. What is not finite is drawn to the end of the axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tasks.report.charts import svg

_WIDTH, _VALUES = 560, 64
_LETTER, _NAMES = 7, (60, 220)  # pixels for a letter, and for names
_MANY, _WIDE_ROW, _NARROW_ROW = 30, 26, 17
_TOP = 20  # for the numbers of the axis


@dataclass(frozen=True, slots=True)
class Interval:
    """A value, and the interval that it is in; NaN where nobody knows one."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, slots=True)
class Spread:
    """How values of one name are spread: their 5, 25, 50, 75 and 95 % quantiles, infinite ones included."""

    name: str
    quantiles: tuple[float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class Offset:
    """A mean offset to the right and down, and how far each may be off (half an interval)."""

    name: str
    dx: float
    dy: float
    dx_error: float
    dy_error: float


def intervals(title: str, rows: Sequence[Interval], *, end: float = 1.0) -> Markup:
    """A bar from 0 on for each value with a line for its interval, over an axis that ends at ``end``."""
    left, height = _left(rows), _row_height(len(rows))
    room = _WIDTH - left - _VALUES
    parts: list[Markup] = []
    for k, each in enumerate(rows):
        middle = (k + 0.5) * height
        low, high = (left + room * _share(value, 0.0, end) for value in (each.low, each.high))
        words = f"{each.value:.3f}" + (f" ({each.low:.3f} to {each.high:.3f})" if math.isfinite(each.low) else "")
        parts += [
            Markup("<g><title>{}: {}</title>").format(each.name, words),
            _name(each.name, left, middle),
            Markup('<rect class="bar" x="{}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2"/>').format(
                left, middle - 0.3 * height, room * _share(each.value, 0.0, end), 0.6 * height
            ),
            _line("whisker", low, middle, high, middle) if math.isfinite(each.low) else Markup(""),
            Markup('<text class="value" x="{}" y="{:.1f}" text-anchor="end">{:.3f}</text></g>').format(
                _WIDTH, middle + 4, each.value
            ),
        ]
    described = ", ".join(f"{each.name} {each.value:.3f}" for each in rows)
    return svg(title, described, _WIDTH, max(1, round(height * len(rows))), parts)


def spreads(title: str, rows: Sequence[Spread], *, mark: float | None = None) -> Markup:
    """The middle half of the values as a box with the median in it, nine tenths of them as a line.

    Args:
        rows: in the order in which they are drawn; values are not negative.
        mark: where an upright line is drawn.
    """
    finite = [value for each in rows for value in each.quantiles if math.isfinite(value)]
    end = max([*finite, mark or 0.0, 1e-12])
    left, height = _left(rows), _row_height(len(rows))
    room = _WIDTH - left - 12
    bottom = _TOP + height * len(rows)
    parts = _axis([0.0, end / 2, end], 0.0, end, left, room, bottom)
    for k, each in enumerate(rows):
        middle = _TOP + (k + 0.5) * height
        low, lower, median, upper, high = (left + room * _share(value, 0.0, end) for value in each.quantiles)
        said = " / ".join(f"{value:.3f}" for value in each.quantiles)
        parts += [
            Markup("<g><title>{}: 5, 25, 50, 75 and 95 % of the errors are at most {}</title>").format(each.name, said),
            _name(each.name, left, middle),
            _line("range", low, middle, high, middle),
            Markup('<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                lower, middle - 0.3 * height, max(upper - lower, 1.0), 0.6 * height
            ),
            _line("middle", median, middle - 0.3 * height, median, middle + 0.3 * height),
            Markup("</g>"),
        ]
    if mark is not None:
        x = left + room * _share(mark, 0.0, end)
        parts.append(_line("mark", x, _TOP, x, bottom))
    described = ", ".join(f"{each.name} {each.quantiles[2]:.3f}" for each in rows)
    return svg(title, f"medians: {described}", _WIDTH, round(bottom + 2), parts)


def offsets(title: str, rows: Sequence[Offset]) -> Markup:
    """Two columns of bars from a middle line on: to the left or right, and up or down; the line is the interval."""
    reach = max([1e-12, *(value + error for each in rows for value, error in _both(each) if math.isfinite(value))])
    left, height, gap = _left(rows), _row_height(len(rows)), 24
    room = (_WIDTH - left - gap - 12) / 2
    starts, bottom = (left, left + room + gap), _TOP + height * len(rows)
    parts: list[Markup] = []
    for start in starts:
        parts += _axis([-reach, 0.0, reach], -reach, reach, start, room, bottom)
    for k, each in enumerate(rows):
        middle = _TOP + (k + 0.5) * height
        words = "dx {:+.3f} ± {:.3f}, dy {:+.3f} ± {:.3f}".format(*(value for pair in _both(each) for value in pair))
        parts += [Markup("<g><title>{}: {}</title>").format(each.name, words), _name(each.name, left, middle)]
        for start, (value, error) in zip(starts, _both(each), strict=True):
            if math.isfinite(value):
                parts += _offset(start, room, reach, value, error, middle, height)
        parts.append(Markup("</g>"))
    described = ", ".join(f"{each.name} {each.dx:+.3f} {each.dy:+.3f}" for each in rows)
    return svg(title, f"dx and dy: {described}", _WIDTH, round(bottom + 2), parts)


def _both(each: Offset) -> tuple[tuple[float, float], tuple[float, float]]:
    return (each.dx, each.dx_error), (each.dy, each.dy_error)


def _offset(
    start: float, room: float, reach: float, value: float, error: float, middle: float, height: float
) -> list[Markup]:
    zero, end, low, high = (
        start + room * _share(at, -reach, reach) for at in (0.0, value, value - error, value + error)
    )
    bar = Markup('<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        min(zero, end), middle - 0.3 * height, abs(end - zero), 0.6 * height
    )
    return [bar, _line("whisker", low, middle, high, middle)]


def _row_height(rows: int) -> float:
    return _NARROW_ROW if rows > _MANY else _WIDE_ROW


def _share(value: float, start: float, end: float) -> float:
    """Of the axis, in [0, 1]; where nothing is known its end."""
    return 1.0 if math.isnan(value) else min(max((value - start) / (end - start), 0.0), 1.0)


def _left(rows: Sequence[Interval | Spread | Offset]) -> float:
    """Where bars begin: names have what they need, within bounds."""
    return float(min(max(_LETTER * max((len(each.name) for each in rows), default=0) + 16, _NAMES[0]), _NAMES[1]))


def _name(name: str, left: float, middle: float) -> Markup:
    most = int((left - 16) / _LETTER)
    shown = name if len(name) <= most else name[: most - 1] + "…"
    return Markup('<text class="name" x="{:g}" y="{:.1f}" text-anchor="end">{}</text>').format(
        left - 10, middle + 4, shown
    )


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _axis(ticks: Sequence[float], start: float, end: float, left: float, room: float, bottom: float) -> list[Markup]:
    """Upright lines with their values above."""
    parts = []
    for value, anchor in zip(ticks, ("start", "middle", "end"), strict=True):
        x = left + room * _share(value, start, end)
        parts += [
            _line("axis", x, _TOP, x, bottom),
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="{}">{:.2g}</text>').format(
                x, _TOP - 6, anchor, value
            ),
        ]
    return parts
