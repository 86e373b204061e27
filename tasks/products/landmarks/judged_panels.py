"""What the page about a judged model shows of points: how errors are spread, which way they go, the worst objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from modelkit.carriers.landmarks import KeypointSet
from modelkit.metrics import area_under_curve, mean_errors, pck, point_errors, point_offsets
from tasks.evaluation.claims import ObjectEvidence
from tasks.product import Judgement
from tasks.products.landmarks.error_pictures import ErrorPicture
from tasks.products.landmarks.judging import Length, lengths_of
from tasks.products.landmarks.pairs import ObjectPairs, PointEvidence, pairs_of
from tasks.report import charts
from tasks.report.charts_by_name import Offset, Spread, offsets, spreads
from tasks.report.judged_objects import object_panels
from tasks.report.judged_panels import JudgedGallery, JudgedPanels, JudgedPicture
from tasks.report.page import page_template
from tasks.report.panels import Section

_STEPS, _FARTHEST = 200, 2.0  # of a curve, which ends at so many times the limit
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_TWO_SIDED_95 = 1.96
_NAMED_POINTS = 3  # of an object below its picture
_OBJECTS, _POINTS = ("objects, by their mean", "var(--accent)"), ("points", "var(--good)")


@dataclass(frozen=True, slots=True)
class Measured:
    """Errors over one length.

    Args:
        errors: (n, K), infinite where a labelled point was not found, NaN where nobody labelled it.
        means: (n,) of each object; NaN where it has no such length.
        offsets: (n, K, 2) to the right and down, NaN where one of the two is not there.
    """

    length: Length
    errors: np.ndarray
    means: np.ndarray
    offsets: np.ndarray


@dataclass(frozen=True, slots=True)
class PointFacts:
    """One point: how often it was labelled, and of these not found; quantiles of its errors, and its mean offset."""

    name: str
    labelled: int
    lost: int
    quantiles: tuple[float, float, float, float, float]
    offset: Offset


def judged_panels(judgement: Judgement, at_most: int) -> JudgedPanels:
    """Cumulative errors over each length; spread and offset by point over the main one; the objects that are worst.

    A model without points is shown as any that finds objects.

    Args:
        at_most: pictures.
    """
    evidence: PointEvidence | ObjectEvidence = judgement.evidence
    if isinstance(evidence, ObjectEvidence):
        return object_panels(judgement, at_most)
    points, rows = evidence.labels.points, evidence.labels.table.to_pylist()
    assert points is not None  # nothing is judged without
    pairs = pairs_of(evidence, rows)
    by = "point" if judgement.class_names == points.names else "class"
    if not len(pairs):
        said = Markup("<p>Of no labelled object that has points anything was found.</p>")
        return JudgedPanels(by, (Section("errors", "Errors of points", said),))
    measured = [measure(pairs, each) for each in lengths_of(points)]
    section = Section("errors", "Errors of points", _errors_section(measured, points, pairs, evidence))
    return JudgedPanels(by, (section,), (_worst(measured[0], points, pairs, evidence, rows, at_most),))


def measure(pairs: ObjectPairs, length: Length) -> Measured:
    """Errors and offsets over a length."""
    lengths = length.of(pairs.true_xyv, pairs.boxes_xyxy)
    errors = point_errors(pairs.found_xy, pairs.true_xyv, lengths)
    return Measured(length, errors, mean_errors(errors), point_offsets(pairs.found_xy, pairs.true_xyv, lengths))


def facts_of(measured: Measured, names: Sequence[str]) -> list[PointFacts]:
    """Of each point that anybody labelled, in the order of the labels."""
    found = []
    for k, name in enumerate(names):
        errors = measured.errors[:, k]
        known = errors[~np.isnan(errors)]
        if known.size:
            quantiles = np.quantile(known, _QUANTILES, method="inverted_cdf").tolist()
            lost = int(np.isinf(known).sum())
            found.append(PointFacts(name, known.size, lost, tuple(quantiles), _offset(name, measured.offsets[:, k])))
    return found


def _offset(name: str, offsets_xy: np.ndarray) -> Offset:
    """The mean of (n, 2), NaN where there is none, and half its 95 % interval, as if objects were independent."""
    known = offsets_xy[np.isfinite(offsets_xy).all(1)]
    if not len(known):
        return Offset(name, *[float("nan")] * 4)
    dx, dy = known.mean(0).tolist()
    errors = _TWO_SIDED_95 * known.std(0) / np.sqrt(len(known))
    return Offset(name, dx, dy, *errors.tolist())


def _errors_section(
    measured: Sequence[Measured], points: KeypointSet, pairs: ObjectPairs, evidence: PointEvidence
) -> Markup:
    main = measured[0]
    facts = facts_of(main, points.names)
    text = page_template("tasks.products.landmarks", "panel_errors.html.j2").render(
        main=main.length,
        found_by_itself=not evidence.top_down,
        not_found=pairs.not_found,
        curves=[_curves(each) for each in measured],
        colours=(_OBJECTS, _POINTS),
        facts=facts,
        spread=spreads("Errors by point", [Spread(e.name, e.quantiles) for e in facts], mark=main.length.limit),
        offset=offsets("Mean offset by point", [each.offset for each in facts]),
    )
    return Markup(text)  # the template escapes what comes from data


def _curves(measured: Measured) -> dict[str, Any]:
    """The shares of objects and points with an error of at most x, and the areas below them up to the limit."""
    limit = measured.length.limit
    steps = np.linspace(0.0, _FARTHEST * limit, _STEPS + 1)
    series = []
    for (name, colour), errors in ((_OBJECTS, measured.means), (_POINTS, measured.errors)):
        known = np.sort(errors[~np.isnan(errors)])
        shares = np.searchsorted(known, steps, side="right") / max(known.size, 1)
        series.append((name, colour, list(zip(steps.tolist(), shares.tolist(), strict=True)) if known.size else []))
    title = f"Share of errors up to x of the {measured.length.words}"
    return {
        "length": measured.length,
        "chart": charts.lines(title, series, most=1.0, mark=limit, whole=False),
        "counted": int((~np.isnan(measured.means)).sum()),
        "areas": [area_under_curve(each, limit) for each in (measured.means, measured.errors)],
        "within": [pck(each, limit) for each in (measured.means, measured.errors)],
    }


def _worst(
    main: Measured, points: KeypointSet, pairs: ObjectPairs, evidence: PointEvidence,
    rows: Sequence[dict[str, Any]], at_most: int,
) -> JudgedGallery:  # fmt: skip
    """The objects with the largest mean errors; those with a point that was not found come first."""
    order = np.argsort(-np.where(np.isnan(main.means), -1.0, main.means), kind="stable")
    chosen = [k for k in order[:at_most].tolist() if not np.isnan(main.means[k])]
    pictures = []
    for k in chosen:
        image, place, at = int(pairs.image[k]), int(pairs.place[k]), int(pairs.at[k])
        row, found = rows[image], evidence.found[image].chosen(np.array([at]))
        draw = ErrorPicture(points, found, row["names"][place], pairs.true_xyv[k], pairs.boxes_xyxy[k])
        pictures.append(JudgedPicture(row, _words(main, k, points.names), draw))
    said = (
        f"objects with the largest mean error, in units of the {main.length.words}; green crosses are labels, a line"
        " leads from each to where the point was found"
    )
    return JudgedGallery("Largest errors", said, pictures)


def _words(main: Measured, k: int, names: Sequence[str]) -> str:
    errors = main.errors[k]
    lost = [names[p] for p in np.flatnonzero(np.isinf(errors)).tolist()]
    worst = [p for p in np.argsort(-np.where(np.isfinite(errors), errors, -1.0)).tolist() if np.isfinite(errors[p])]
    said = ", ".join(f"{names[p]} {errors[p]:.2f}" for p in worst[:_NAMED_POINTS])
    mean = f"not found: {', '.join(lost)}" if lost else f"mean error {main.means[k]:.2f}"
    return f"{mean}; {said}" if said else mean
