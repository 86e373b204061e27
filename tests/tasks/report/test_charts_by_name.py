"""Charts with a row for each name: bars are as long as values are, and nothing that is not finite spoils them."""

from __future__ import annotations

import math
import re

import pytest

from tasks.report.charts_by_name import Interval, Offset, Spread, intervals, offsets, spreads

EVIL = "<script>alert(1)</script>"
MANY = [f"point {k}" for k in range(68)]


def bars(chart: str) -> list[tuple[float, float]]:
    """(x, width) of each bar."""
    found = re.findall(r'<rect class="bar" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', chart)
    return [(float(x), float(width)) for x, width in found]


def lines(chart: str, kind: str) -> list[tuple[float, float]]:
    """Where each line of a sort begins and ends, from left to right."""
    return [(float(x1), float(x2)) for x1, x2 in
            re.findall(rf'<line class="{kind}" x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)"', chart)]  # fmt: skip


def test_bars_and_intervals_have_one_scale_and_what_is_not_known_has_no_line() -> None:
    chart = str(intervals("t", [Interval("a", 0.25, 0.0, 0.5), Interval("b", 0.5), Interval("c", 1.0, 0.9, 1.0)]))
    (left, quarter), (_, half), (_, whole) = bars(chart)
    assert half == pytest.approx(2 * quarter, abs=0.2) and whole == pytest.approx(4 * quarter, abs=0.2)
    first, last = lines(chart, "whisker")
    assert first == pytest.approx((left, left + half), abs=0.2) and last[1] == pytest.approx(left + whole, abs=0.2)


def test_spreads_hold_infinite_errors_and_names_of_many_points() -> None:
    rows = [Spread(name, (0.0, 0.1, 0.2, 0.3, math.inf)) for name in MANY]
    chart = str(spreads("t", rows, mark=0.15))
    assert "nan" not in chart and all(f">{name}</text>" in chart for name in MANY)
    height = float(re.search(r'viewBox="0 0 560 (\d+)"', chart)[1])  # type: ignore[index]
    assert height < 68 * 20
    (x, width), (low, high) = bars(chart)[0], lines(chart, "range")[0]
    scale = (high - low) / 0.3
    assert (x - low, width) == pytest.approx((0.1 * scale, 0.2 * scale), abs=0.2)
    assert lines(chart, "mark")[0][0] == pytest.approx(low + 0.15 * scale, abs=0.2)


def test_offsets_go_to_both_sides_of_the_middle_and_what_is_not_known_is_left_out() -> None:
    nan = math.nan
    chart = str(offsets("t", [Offset("a", -0.1, 0.2, 0.01, 0.01), Offset("b", nan, nan, nan, nan)]))
    (left_x, left_width), (right_x, right_width) = bars(chart)
    first, second = lines(chart, "axis")[1], lines(chart, "axis")[4]
    assert left_x + left_width == pytest.approx(first[0], abs=0.2) and right_x == pytest.approx(second[0], abs=0.2)
    assert right_width == pytest.approx(2 * left_width, abs=0.2)


def test_names_are_escaped_and_cut_where_they_are_too_long() -> None:
    for chart in (
        intervals(EVIL, [Interval(EVIL * 3, 0.5)]), spreads(EVIL, [Spread(EVIL * 3, (0, 0, 0, 0, 0))]),
        offsets(EVIL, [Offset(EVIL * 3, 0, 0, 0, 0)]), intervals("t", []), spreads("t", []), offsets("t", []),
    ):  # fmt: skip
        assert "<script" not in str(chart)
    assert "…</text>" in str(intervals("t", [Interval(EVIL * 3, 0.5)]))
