"""What the report says of ``segments``: how many, of which classes, how large, how sure; which pictures it shows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from tasks.output.views import Views
from tasks.report import charts
from tasks.report.classes import known_classes
from tasks.report.drawing import colour_of, stuff_colour_of
from tasks.report.page import page_template
from tasks.report.panels import Card, Panels, Ranking, Section, Tile
from tasks.report.things import facets, rows_of, summary_of, things_per_item

SCORE_BINS = 20
MAX_CLASSES = 20
_SMALL_MULTIPLES = 12

_RANKINGS = (
    Ranking("Surest", "items with the highest mean score", "list_avg(scores) DESC"),
    Ranking("Least sure", "items with the lowest mean score: where a closer look pays most", "list_avg(scores)"),
)
_QUERY = "SELECT name, count(*) AS instances, avg(score) AS score FROM instances GROUP BY name ORDER BY 2 DESC"


@dataclass(frozen=True, slots=True)
class ClassFacts:
    """One class: how many instances, in how many items, how sure, and their scores in bins of [0, 1]."""

    label: int
    name: str
    is_thing: bool
    instances: int
    items: int
    mean_score: float
    histogram: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """Every number of the panels; ``classes`` are the most frequent ones."""

    instances: int
    ok_items: int
    empty_items: int
    num_classes: int
    num_known: int
    classes: tuple[ClassFacts, ...]
    per_item: tuple[tuple[str, int], ...]  # instances per item, in ranges
    sizes: tuple[tuple[str, int], ...]  # instances by share of their image

    @property
    def histogram(self) -> tuple[int, ...]:
        """Scores of all classes together (of the listed ones: the page says so when there are more)."""
        return tuple(map(sum, zip(*(each.histogram for each in self.classes), strict=True))) or (0,) * SCORE_BINS


def panels(views: Views) -> Panels:
    """The panels of an output in any state."""
    facts = collect(views)
    return Panels(
        title="Segmentation",
        query=_QUERY,
        views="the newest row per item and one row per instance",
        tiles=_tiles(facts, views.min_score),
        cards=_cards(facts),
        sections=(Section("classes", "Classes and scores", _classes_section(facts)),) if facts.classes else (),
        found="len(labels) > 0",
        rankings=_RANKINGS,
        tracks="list_filter(coalesce(track_ids, []), lambda track: track IS NOT NULL)",
        facet_columns=("names", "scores"),
        facets=facets,
        amount="len(labels)",
        summary=summary_of,
    )


def collect(views: Views) -> Facts:
    """Ask everything; queries read narrow columns and give bounded answers."""
    [(instances, ok_items, empty_items)] = rows_of(
        views,
        "SELECT coalesce(sum(len(labels)), 0), count(*) FILTER (status = 'ok'),"
        " count(*) FILTER (status = 'ok' AND len(labels) = 0) FROM items",
    )
    return Facts(
        instances=int(instances),
        ok_items=ok_items,
        empty_items=empty_items,
        num_classes=rows_of(views, "SELECT count(DISTINCT label) FROM instances")[0][0],
        num_known=len(known_classes(views)),
        classes=_classes(views),
        per_item=things_per_item(views),
        sizes=_sizes(views),
    )


def _tiles(facts: Facts, min_score: float) -> tuple[Tile, ...]:
    per_item = facts.instances / max(facts.ok_items, 1)
    without = f"{per_item:.1f} per item, {charts.number(facts.empty_items)} items without"
    without += f"; scores from {min_score:g}" if min_score > 0 else ""
    known = f"of {facts.num_known} known" if facts.num_known else ""
    return (
        Tile("Instances", charts.number(facts.instances), without),
        Tile("Classes found", charts.number(facts.num_classes), known),
    )


def _cards(facts: Facts) -> tuple[Card, ...]:
    cards = []
    if facts.per_item:
        cards.append(Card("Instances per item", charts.columns("Items by number of instances", facts.per_item)))
    if facts.sizes:
        drawn = charts.columns("Instances by share of their image", facts.sizes)
        cards.append(Card("Size of an instance, as share of its image", drawn))
    return tuple(cards)


def _classes_section(facts: Facts) -> Markup:
    colours = [
        "rgb({},{},{})".format(*(colour_of if each.is_thing else stuff_colour_of)(each.label)) for each in facts.classes
    ]
    bars = [(each.name, each.instances) for each in facts.classes]
    text = page_template("tasks.products.segments", "panel_classes.html.j2").render(
        facts=facts,
        by_class=charts.horizontal_bars("Instances by class", bars, colours=colours),
        scores=charts.histogram("Scores of all instances", facts.histogram, 0, 1),
        scores_by_class=[
            (each, charts.histogram(f"Scores of {each.name}", each.histogram, 0, 1, compact=True))
            for each in facts.classes[:_SMALL_MULTIPLES]
        ],
    )
    return Markup(text)  # the template escapes what comes from data


def _classes(views: Views) -> tuple[ClassFacts, ...]:
    """The most frequent classes with their score histograms, in one pass over labels, names and scores."""
    bins = ", ".join(
        f"count(*) FILTER (least(CAST(floor(score * {SCORE_BINS}) AS INTEGER), {SCORE_BINS - 1}) = {index})"
        for index in range(SCORE_BINS)
    )
    found = rows_of(
        views,
        "SELECT label, coalesce(any_value(name), 'class ' || label), bool_or(is_thing), count(*) AS n,"
        f" count(DISTINCT (uri, frame)), avg(score), [{bins}]"
        f" FROM instances GROUP BY label ORDER BY n DESC, label LIMIT {MAX_CLASSES}",
    )
    return tuple(
        ClassFacts(label, name, is_thing, count, items, mean, tuple(histogram))
        for label, name, is_thing, count, items, mean, histogram in found
    )


def _sizes(views: Views) -> tuple[tuple[str, int], ...]:
    """By the share of the image that the mask covers: comparable between resolutions."""
    edges = [0.0, 0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 1.01]
    names = ["< 0.1 %", "0.1-0.5 %", "0.5-2 %", "2-5 %", "5-10 %", "10-25 %", "> 25 %"]
    counts = ", ".join(f"count(*) FILTER (share >= {low} AND share < {high})" for low, high in pairwise(edges))
    row = rows_of(views, f"SELECT {counts} FROM (SELECT area / (width::DOUBLE * height) AS share FROM instances)")[0]
    return tuple(zip(names, row, strict=True)) if any(row) else ()
