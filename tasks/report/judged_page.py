"""The page about how good a model is: figures with intervals, bars by class, the kind's own, the worst pictures."""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

import modelkit
from infra.store import Store
from infra.telling import tell
from tasks.evaluation.bootstrap import RESAMPLES, Intervals, intervals_of
from tasks.evaluation.figures import in_words
from tasks.labels.label_sets import LabelSet
from tasks.product import Judgement, find_kind
from tasks.report import charts
from tasks.report.charts_by_name import Interval, intervals
from tasks.report.judged_panels import JudgedGallery, JudgedPanels
from tasks.report.judged_place import PAGE_MARK
from tasks.report.labelled_samples import LabelledSamples
from tasks.report.page import page_template
from tasks.report.report_samples import Gallery

PICTURES = 24
"""On a page, at most."""
_BARS, _BARS_IN_CARD = 80, 40  # of more than fit into one card half are in each
_DIGEST_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Judged:
    """What was judged.

    Args:
        model, labelled: as they were asked for. record: of the weights. labels: as they were read.
        looks: how the model looked at images, where that was asked for.
    """

    model: str
    record: modelkit.Weights
    labelled: str
    labels: LabelSet
    looks: Mapping[str, Any] = field(default_factory=dict)


def write_judged_page(
    judgement: Judgement, judged: Judged, store: Store, key: str, *, pictures: int = PICTURES, budget_s: float = 60.0
) -> str:
    """Write (or rewrite) the page; its URI.

    Args:
        pictures: at most; 0 for none. An image that cannot be read any more gives a placeholder.
        budget_s: seconds after which no further picture is loaded.

    Raises:
        StoreError: the page cannot be written.
    """
    tell("writing the page")
    show = find_kind(judgement.kind).panels
    panels: JudgedPanels = JudgedPanels() if show is None else show(judgement, pictures)
    samples = LabelledSamples(time.monotonic() + budget_s)
    galleries = [(_drawn(each, samples), each.are_pairs) for each in panels.galleries if each.pictures]
    group_of = dict(zip(*(judged.labels.table[name].to_pylist() for name in ("image_id", "group_id")), strict=True))
    known = intervals_of(judgement, groups=[group_of[each] for each in judgement.image_ids])
    store.put(key, render(judgement, judged, panels, known, galleries).encode())
    return store.uri_of(key)


def _drawn(gallery: JudgedGallery, samples: LabelledSamples) -> Gallery:
    drawn = []
    for each in gallery.pictures:
        item = each.item
        frame = item["frame"] if item["media"] == "video" else None
        drawn.append(samples.sample(item["uri"], frame, (item["height"], item["width"]), each.words, each.draw))
    return Gallery(gallery.title, gallery.explanation, tuple(drawn))


def render(
    judgement: Judgement,
    judged: Judged,
    panels: JudgedPanels,
    known: Intervals,
    galleries: Sequence[tuple[Gallery, bool]] = (),
) -> str:
    """The page as text; everything that comes from data is escaped by the template engine.

    Args:
        galleries: each with whether its pictures are pairs.
    """
    groups = judgement.figures
    main_group = next(iter(groups.values()))
    by_class = _by_class(judgement, main_group.get("by_class", {}), known)
    class_groups = [name for name, group in groups.items() if "by_class" in group]
    named = dict.fromkeys(name for group in class_groups for name in groups[group]["by_class"])
    return page_template("tasks.report", "judged_report.html.j2").render(
        mark=Markup(PAGE_MARK),
        judgement=judgement,
        intervals=known,
        resamples=RESAMPLES,
        panels=panels,
        model=judged.model,
        labelled=judged.labelled,
        short_model=judged.record.name,
        short_labelled=judged.labelled.rstrip("/").rsplit("/", 1)[-1],
        main_name=in_words(next(iter(main_group)), judgement.kind),
        notes=judgement.notes,
        groups=list(groups),
        figures=_figures(groups, lambda name: in_words(name, judgement.kind)),
        by_class=by_class,
        without=[name for name in judgement.class_names if name not in {each.name for each in by_class}],
        shown_classes=min(_BARS, len(by_class)),
        class_charts=_class_charts(by_class, panels.by),
        class_groups=class_groups,
        class_rows=[(name, [groups[group]["by_class"].get(name) for group in class_groups]) for name in named],
        single=[gallery for gallery, is_pairs in galleries if not is_pairs],
        pairs=[gallery for gallery, is_pairs in galleries if is_pairs],
        facts=_facts(judged),
        shown=_shown,
        n=charts.number,
        written_at=dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M"),
    )


def _by_class(judgement: Judgement, values: Mapping[str, float], known: Intervals) -> list[Interval]:
    """The main figure by class with its interval, the lowest first; classes that nobody labelled are left out."""
    place = {name: k for k, name in enumerate(judgement.class_names)}
    found = []
    for name, value in values.items():
        if value >= 0:  # not so of NaN, nor of pycocotools' -1
            k = place.get(name)
            low, high = (math.nan, math.nan) if k is None else (known.class_low[k], known.class_high[k])
            found.append(Interval(name, float(value), float(low), float(high)))
    return sorted(found, key=lambda each: each.value)


def _class_charts(by_class: Sequence[Interval], word: str) -> list[Markup]:
    """Bars of the lowest ones, so many to a card, over one axis."""
    end = max([1.0, *(each.value for each in by_class)])
    shown = by_class[:_BARS]
    half = len(shown) if len(shown) <= _BARS_IN_CARD else -(-len(shown) // 2)
    return [intervals(f"By {word}", each, end=end) for each in (shown[:half], shown[half:]) if each]


def _figures(
    groups: Mapping[str, Mapping[str, Any]], words: Callable[[str], str]
) -> list[tuple[str, list[float | None]]]:
    """A row for each figure that is a number, with its value in each group."""
    names = dict.fromkeys(
        name for group in groups.values() for name, value in group.items() if isinstance(value, int | float)
    )
    return [(words(name), [group.get(name) for group in groups.values()]) for name in names]


def _facts(judged: Judged) -> list[tuple[str, str]]:
    """Rows of the last table."""
    record, labels = judged.record, judged.labels
    rows = {
        "weights": record.name,
        "architecture": record.architecture,
        "kind": record.kind,
        "digest of the weights": record.digest[:_DIGEST_LENGTH],
        **{name.replace("_", " "): value for name, value in judged.looks.items()},
        "label set": labels.label_set_id[:_DIGEST_LENGTH],
        **{f"left out: {reason}": f"{count:,} labels" for reason, count in labels.losses.left_out.items()},
        **{f"dropped: {reason}": f"{count:,} labels" for reason, count in labels.losses.dropped.items()},
    }
    return [(name, str(value)) for name, value in rows.items() if value not in (None, "")]


def _shown(value: float | None) -> str:
    """A figure of a table; -1 and NaN say that there is no truth, counts are whole numbers."""
    if value is None or not value >= 0:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
