"""What the report says of ``landmarks``: how many objects, how sure of each keypoint; which pictures it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tasks.output.views import Views
from tasks.products.landmarks.overlay import LEFT, MIDDLE, RIGHT, side_colours
from tasks.report import charts
from tasks.report.page import page_template
from tasks.report.panels import Card, Panels, Ranking, Section, Tile
from tasks.report.things import facets, rows_of, summary_of, things_per_item

SCORE_BINS = 20
_MOST_NAMED = 24  # keypoints with a bar and a histogram of their own; of faces with 68 the first ones
_MOST_VIDEOS = 6
_MOST_POINTS = 400  # of a curve over time

_KEYPOINT_SCORE = "list_avg(list_transform(keypoint_scores, lambda each: list_avg(each)))"
_RANKINGS = (
    Ranking("Surest", "items with the highest mean score of their objects", "list_avg(scores) DESC"),
    Ranking("Least sure", "items with the lowest mean score: where a closer look pays most", "list_avg(scores)"),
    Ranking("Unsure keypoints", "items whose keypoints score least, on the mean", f"{_KEYPOINT_SCORE} NULLS LAST"),
)
_QUERY = "SELECT name, count(*) AS n, avg(score) AS score FROM keypoints WHERE visible GROUP BY name ORDER BY score"


@dataclass(frozen=True, slots=True)
class KeypointFacts:
    """One keypoint: on how many objects it is and is not, how sure, scores in bins of [0, 1], and its colour."""

    name: str
    present: int
    absent: int
    mean_score: float
    histogram: tuple[int, ...]
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Every number of the panels."""

    objects: int
    ok_items: int
    empty_items: int
    tracks: int
    keypoints: tuple[KeypointFacts, ...]
    per_item: tuple[tuple[str, int], ...]

    @property
    def histogram(self) -> tuple[int, ...]:
        """Scores of all keypoints together."""
        return tuple(map(sum, zip(*(each.histogram for each in self.keypoints), strict=True))) or (0,) * SCORE_BINS


def panels(views: Views) -> Panels:
    """The panels of an output in any state."""
    facts = collect(views)
    sections = [Section("keypoints", "Keypoints and scores", _keypoints_section(facts))] if facts.keypoints else []
    if facts.tracks:
        sections.append(Section("tracks", "Tracks over time", _tracks_section(views)))
    return Panels(
        title="Landmarks",
        query=_QUERY,
        views="the newest row per item, one row per object and one per keypoint",
        tiles=_tiles(facts, views.min_score),
        cards=(Card("Objects per item", charts.columns("Items by number of objects", facts.per_item)),)
        if facts.per_item
        else (),
        sections=tuple(sections),
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
    [(objects, ok_items, empty_items)] = rows_of(
        views,
        "SELECT coalesce(sum(len(labels)), 0), count(*) FILTER (status = 'ok'),"
        " count(*) FILTER (status = 'ok' AND len(labels) = 0) FROM items",
    )
    [(tracks,)] = rows_of(views, "SELECT count(DISTINCT (uri, track_id)) FILTER (track_id IS NOT NULL) FROM objects")
    return Facts(int(objects), ok_items, empty_items, tracks, _keypoints(views), things_per_item(views))


def _tiles(facts: Facts, min_score: float) -> tuple[Tile, ...]:
    per_item = facts.objects / max(facts.ok_items, 1)
    without = f"{per_item:.1f} per item, {charts.number(facts.empty_items)} items without"
    without += f"; scores from {min_score:g}" if min_score > 0 else ""
    present = sum(each.present for each in facts.keypoints)
    absent = sum(each.absent for each in facts.keypoints)
    said = f"{len(facts.keypoints)} on an object; {charts.number(absent)} are absent"
    tiles = [Tile("Objects", charts.number(facts.objects), without)]
    tiles += [Tile("Keypoints", charts.number(present), said)] if facts.keypoints else []
    tiles += [Tile("Tracks", charts.number(facts.tracks), "objects that are followed through videos")] * bool(
        facts.tracks
    )
    return tuple(tiles)


def _keypoints(views: Views) -> tuple[KeypointFacts, ...]:
    """In the order of the model, with histograms of what is there."""
    bins = ", ".join(
        f"count(*) FILTER (x IS NOT NULL AND least(CAST(floor(score * {SCORE_BINS}) AS INTEGER), {SCORE_BINS - 1})"
        f" = {place})"
        for place in range(SCORE_BINS)
    )
    found = rows_of(
        views,
        f"SELECT name, count(x), count(*) - count(x), coalesce(avg(score) FILTER (x IS NOT NULL), 0), [{bins}]"
        " FROM keypoints GROUP BY keypoint, name ORDER BY keypoint",
    )
    colours = _colours(views)
    return tuple(
        KeypointFacts(name, present, absent, mean, tuple(histogram), colours.get(name, ""))
        for name, present, absent, mean, histogram in found
    )


def _colours(views: Views) -> dict[str, str]:
    """CSS colour of each keypoint, as pictures have it."""
    [(said,)] = rows_of(views, "SELECT any_value(keypoint_set) FROM items WHERE keypoint_set IS NOT NULL")
    if said is None:
        return {}
    return {
        name: _css(colour)
        for name, colour in zip(said["names"], side_colours(said["names"], said["flip_pairs"]), strict=True)
    }


def _css(colour: Sequence[int]) -> str:
    return "rgb({},{},{})".format(*colour)


def _keypoints_section(facts: Facts) -> Markup:
    named = facts.keypoints[:_MOST_NAMED]
    text = page_template("tasks.products.landmarks", "panel_keypoints.html.j2").render(
        facts=facts,
        named=named,
        sides=[("left", _css(LEFT)), ("right", _css(RIGHT)), ("neither", _css(MIDDLE))],
        by_name=charts.horizontal_bars(
            "Mean score by keypoint",
            [(each.name, each.mean_score) for each in named],
            colours=[e.colour for e in named],
        ),
        scores=charts.histogram("Scores of all keypoints", facts.histogram, 0, 1),
        scores_by_name=[
            (each, charts.histogram(f"Scores of {each.name}", each.histogram, 0, 1, compact=True)) for each in named
        ],
    )
    return Markup(text)  # the template escapes what comes from data


def _tracks_section(views: Views) -> Markup:
    """How many objects are followed at each moment, a curve per video; those with most tracks."""
    videos = rows_of(
        views,
        "SELECT uri, count(DISTINCT track_id) AS tracks, avg(seen) FROM (SELECT uri, track_id, count(*) AS seen"
        " FROM objects WHERE track_id IS NOT NULL GROUP BY ALL) GROUP BY uri"
        f" ORDER BY tracks DESC, uri LIMIT {_MOST_VIDEOS}",
    )
    cards = []
    for uri, tracks, seen in videos:
        points = views.connection.execute(
            "SELECT coalesce(pts_s, frame), len(list_filter(track_ids, lambda each: each IS NOT NULL)) FROM items"
            " WHERE uri = ? AND status = 'ok' ORDER BY frame",
            [uri],
        ).fetchall()
        step = max(1, len(points) // _MOST_POINTS)
        chart = charts.lines(f"Objects in {uri}", [("objects", "var(--accent)", points[::step])])
        cards.append((uri.rsplit("/", 1)[-1], tracks, seen, chart))
    text = page_template("tasks.products.landmarks", "panel_tracks.html.j2").render(cards=cards)
    return Markup(text)  # the template escapes what comes from data
