"""What a product puts on the page of a report: numbers, charts, sections, and which pictures are worth a look.

A product makes :class:`Panels` of open views (``Product.panels``); head, failures, speed, model and plan are the same
for all and stand in :mod:`tasks.report.report_data`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tasks.output.views import Views
from tasks.product import called


@dataclass(frozen=True, slots=True)
class Tile:
    """A number at the top of the page, with a name above and a note below."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """A chart with a heading, beside the bar of statuses."""

    title: str
    chart: Markup


@dataclass(frozen=True, slots=True)
class Section:
    """A section of its own; ``anchor`` is its address on the page, ``body`` the escaped HTML below its heading."""

    anchor: str
    title: str
    body: Markup


@dataclass(frozen=True, slots=True)
class Ranking:
    """A gallery of items that stand first in an order; items that an earlier gallery shows are left out.

    Args:
        title, explanation: above the pictures.
        order: SQL over ``items``; equal ones follow by name.
    """

    title: str
    explanation: str
    order: str


def no_words(row: Mapping[str, Any]) -> str:
    """Nothing is said below a picture."""
    return ""


def no_facets(row: Mapping[str, Any]) -> dict[str, float]:
    """Nothing to filter by."""
    return {}


@dataclass(frozen=True, slots=True)
class Panels:
    """What of the page is a product's own.

    Args:
        title: what was done: "Segmentation".
        query: an example over the product's views. views: what these add, in words.
        tiles: the first stands beside the number of items.
        found: SQL condition over ``items``: there is something to see.
        rankings: of items in which something was found.
        tracks: SQL over ``items``: a list of the ids of what goes on from frame to frame; "" where nothing is followed.
        facets: row of ``items`` (``facet_columns`` are enough) -> name of what was found -> its best score, in [0, 1].
        amount: SQL over ``items``: how much was found, by which versions are compared; "" where they are not.
        summary: row of ``items`` -> what is said below its picture, its alternative text, too.
    """

    title: str
    query: str
    views: str = "the newest row per item"
    tiles: tuple[Tile, ...] = ()
    cards: tuple[Card, ...] = ()
    sections: tuple[Section, ...] = ()
    found: str = "true"
    rankings: tuple[Ranking, ...] = ()
    tracks: str = ""
    facet_columns: tuple[str, ...] = ()
    facets: Callable[[Mapping[str, Any]], dict[str, float]] = no_facets
    amount: str = ""
    summary: Callable[[Mapping[str, Any]], str] = no_words


def panels_of(views: Views) -> Panels:
    """Those of the views' product; a product that brings none has a plain page."""
    product = views.product
    assert product is not None, "a report is of a product's results"
    if product.panels is not None:
        with called(product, "panels"):
            panels: Panels = product.panels(views)
        return panels
    return Panels(title=product.name.capitalize(), query=product.query)
