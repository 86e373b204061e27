"""Bar and line charts as inline SVG, without any script: sizes in user units, colours by CSS classes of the page.

Every chart carries a title and a description for those who do not see it; all text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

_ROW, _BAR = 26, 16


def number(value: float) -> str:
    """Short and exact enough to read: ``1,234``, ``0.87``, ``12.3 M``."""
    if abs(value) >= 10_000_000:
        return f"{value / 1_000_000:,.1f} M"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def horizontal_bars(
    title: str, bars: Sequence[tuple[str, float]], *, unit: str = "", colours: Sequence[str] | None = None
) -> Markup:
    """One labelled bar per row, for names of any length (they are cut in the picture, whole in the hover text).

    Args:
        title: what is shown; the description lists all values.
        bars: (name, value), drawn in this order.
        unit: behind every value.
        colours: CSS colour per bar; None: the page's accent.
    """
    width, name_width, value_width = 560, 150, 90
    room = width - name_width - value_width
    most = max((value for _, value in bars), default=0) or 1
    rows = []
    for index, (name, value) in enumerate(bars):
        y = index * _ROW
        length = max(2.0, room * value / most) if value else 0.0
        fill = Markup(' style="fill:{}"').format(colours[index]) if colours else ""
        shown = name if len(name) <= 22 else name[:21] + "…"
        rows.append(
            Markup(
                '<g><title>{}: {}</title><text class="name" x="{}" y="{}" text-anchor="end">{}</text>'
                '<rect class="bar" x="{}" y="{}" width="{:.1f}" height="{}" rx="3"{}/>'
                '<text class="value" x="{:.1f}" y="{}">{}</text></g>'
            ).format(
                name,
                _with_unit(value, unit),
                name_width - 10,
                y + 17,
                shown,
                name_width,
                y + 5,
                length,
                _BAR,
                fill,
                name_width + length + 8,
                y + 17,
                _with_unit(value, unit),
            )
        )
    described = ", ".join(f"{name} {_with_unit(value, unit)}" for name, value in bars)
    return svg(title, described, width, max(_ROW * len(bars), 1), rows)


def histogram(title: str, counts: Sequence[int], low: float, high: float, *, compact: bool = False) -> Markup:
    """Columns over equal steps from ``low`` to ``high``."""
    width, height = (240, 84) if compact else (560, 190)
    left, bottom = (4, 16) if compact else (8, 24)
    room_x, room_y = width - 2 * left, height - bottom - 8
    most = max(counts, default=0) or 1
    step = room_x / max(len(counts), 1)
    columns = []
    for index, count in enumerate(counts):
        tall = max(1.5, room_y * count / most) if count else 0
        start = low + (high - low) * index / len(counts)
        end = low + (high - low) * (index + 1) / len(counts)
        columns.append(
            Markup(
                "<g><title>{:.2f} to {:.2f}: {}</title>"
                '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2"/></g>'
            ).format(start, end, number(count), left + index * step + 1, height - bottom - tall, max(step - 2, 1), tall)
        )
    columns.append(_axis(low, high, left, width, height - bottom, ticks=3 if compact else 6))
    peak = low + (high - low) * (max(range(len(counts)), key=counts.__getitem__) + 0.5) / len(counts) if counts else 0
    described = f"{number(sum(counts))} values from {low:g} to {high:g}, most of them near {peak:.2f}"
    return svg(title, described, width, height, columns)


def columns(title: str, bars: Sequence[tuple[str, float]]) -> Markup:
    """Named columns, for ranges in their order."""
    width, height, left, bottom = 560, 190, 8, 24
    room_y = height - bottom - 22
    most = max((value for _, value in bars), default=0) or 1
    step = (width - 2 * left) / max(len(bars), 1)
    parts = []
    for index, (name, value) in enumerate(bars):
        tall = max(1.5, room_y * value / most) if value else 0
        middle = left + (index + 0.5) * step
        parts.append(
            Markup(
                "<g><title>{}: {}</title>"
                '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="3"/>'
                '<text class="value" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>'
                '<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text></g>'
            ).format(
                name,
                number(value),
                middle - min(step * 0.36, 34),
                height - bottom - tall,
                min(step * 0.72, 68),
                tall,
                middle,
                height - bottom - tall - 6,
                number(value),
                middle,
                height - 7,
                name,
            )
        )
    return svg(title, ", ".join(f"{name}: {number(value)}" for name, value in bars), width, height, parts)


def stacked_bar(title: str, pieces: Sequence[tuple[str, int, str]]) -> Markup:
    """One bar cut into (name, count, CSS class) pieces; what is not zero can always be seen."""
    width, height = 1000, 18
    total = sum(count for _, count, _ in pieces) or 1
    least = 4.0
    widths = [max(least, width * count / total) if count else 0.0 for _, count, _ in pieces]
    widths = [one * width / (sum(widths) or 1) for one in widths]
    parts, x = [], 0.0
    for (name, count, kind), one in zip(pieces, widths, strict=True):
        parts.append(
            Markup('<g><title>{}: {}</title><rect class="{}" x="{:.1f}" y="0" width="{:.1f}" height="{}"/></g>').format(
                name, number(count), kind, x, one, height
            )
        )
        x += one
    return svg(title, ", ".join(f"{name} {count}" for name, count, _ in pieces), width, height, parts, stretch=True)


def lines(
    title: str,
    series: Sequence[tuple[str, str, Sequence[tuple[float, float]]]],
    *,
    compact: bool = False,
    most: float | None = None,
    mark: float | None = None,
    whole: bool = True,
) -> Markup:
    """Curves over a common axis, the upright one from 0 on; a legend belongs beside it, the picture holds no names.

    Args:
        title: what is shown.
        series: (name, CSS colour, points as (x, y) in the order of x); values that are not finite leave a gap.
        compact: small, for many beside each other.
        most: upper end of the upright axis; None: from the values.
        mark: where an upright line is drawn, a value of x.
        whole: whether values of x are whole numbers, as those of steps.
    """
    width, height, left, bottom, top = (240, 100, 44, 18, 8) if compact else (560, 220, 44, 24, 10)
    points = [point for _, _, found in series for point in found if math.isfinite(point[1])]
    if not points:
        return svg(title, "no values", width, height, [])
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    most = most or _round_up(max(y for _, y in points))
    room_x, room_y = width - left - 10, height - bottom - top

    def place(x: float, y: float) -> tuple[float, float]:
        share = (x - first) / (last - first) if last > first else 0.5
        return left + share * room_x, top + room_y * (1 - min(max(y, 0) / most, 1))

    parts = []
    for share in (0.0, 0.5, 1.0) if compact else (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + room_y * (1 - share)
        parts.append(
            Markup(
                '<line class="axis" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
                '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{:g}</text>'
            ).format(left, width - 10, y, y, left - 6, y + 4, share * most)
        )
    for share, anchor in ((0.0, "start"), *[(0.5, "middle")] * (not compact), (1.0, "end")):
        value = first + share * (last - first)
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
                left + share * room_x, height - 6, anchor, number(round(value)) if whole else f"{value:.3g}"
            )
        )
    if mark is not None:
        x, foot = place(mark, 0.0)
        parts.append(Markup('<line class="mark" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{:.1f}"/>').format(x, x, top, foot))
    for name, colour, found in series:
        for piece in _pieces(found):
            drawn = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in piece)
            parts.append(
                Markup('<polyline class="line" points="{}" style="stroke:{}"><title>{}</title></polyline>').format(
                    drawn, colour, name
                )
            )
    ends = [(name, [y for _, y in found if math.isfinite(y)]) for name, _, found in series]
    described = ", ".join(f"{name} from {values[0]:.3g} to {values[-1]:.3g}" for name, values in ends if values)
    return svg(title, described, width, height, parts)


def _pieces(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 6, 8 times a power of ten, so that quarters of it are short numbers."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if value <= step * power * (1 + 1e-9))


def _axis(low: float, high: float, left: int, width: int, y: int, *, ticks: int) -> Markup:
    parts = [Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, width - left, y, y)]
    for index in range(ticks):
        share = index / (ticks - 1)
        anchor = "start" if index == 0 else "end" if index == ticks - 1 else "middle"
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="{}">{:g}</text>').format(
                left + share * (width - 2 * left), y + 13, anchor, round(low + share * (high - low), 3)
            )
        )
    return Markup("").join(parts)


def _with_unit(value: float, unit: str) -> str:
    return f"{number(value)} {unit}".strip()


def svg(
    title: str, described: str, width: int, height: int, parts: Sequence[Markup], *, stretch: bool = False
) -> Markup:
    """The picture of a chart; title and description are its text for those who do not see it."""
    ratio = Markup(' preserveAspectRatio="none"') if stretch else ""
    return Markup('<svg class="chart" role="img" viewBox="0 0 {} {}" aria-label="{}"{}>{}</svg>').format(
        width, height, f"{title}: {described}", ratio, Markup("").join(parts)
    )
