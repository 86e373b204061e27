"""Views that show less: things of some confidence, and what a condition in SQL chooses.

Exports and pictures look at the views alone, so what is narrowed here is narrowed in every form alike. ``items`` keeps
its columns; its parallel lists hold the chosen things. The product's view of things keeps the numbers of its rows, so
that a row of an export is found again in the output. ``all_items`` stays as it is.
"""

from __future__ import annotations

import duckdb
import pyarrow as pa

from tasks.output.schema import COMMON, widest_schema
from tasks.product import Product, Things

_WHOLE = "_whole_items"


def narrow(
    connection: duckdb.DuckDBPyConnection,
    product: Product,
    *,
    min_score: float = 0.0,
    of_items: str | None = None,
    of_things: str | None = None,
) -> None:
    """Replace the views of a connection, of which none was narrowed yet.

    Args:
        connection: with ``items`` and the product's views.
        product: whose.
        min_score: less sure things are left out; items stay, also where none is left. Of products without scores: none.
        of_items: a condition over ``items``; items are kept whole, also failed ones where it is true.
        of_things: a condition over the product's view of things; items that have no such thing are left out, unless
            they failed.

    Raises:
        duckdb.Error: a condition that is none.
    """
    things = product.things
    if of_items is None and of_things is None and (things is None or min_score == 0):
        return
    connection.execute(f"ALTER VIEW items RENAME TO {_WHOLE}")
    whole = f"SELECT * FROM {_WHOLE} WHERE {of_items or 'true'}"
    if things is None:
        connection.execute(f"CREATE VIEW items AS {whole}")
        return
    chosen = f"SELECT * FROM (WITH items AS ({whole}) {product.views[things.view]}) WHERE {_sure(things, min_score)}"
    chosen += f" AND {of_things}" if of_things is not None else ""
    connection.execute(
        f"CREATE TEMP TABLE _chosen AS SELECT uri, frame, list({things.place} + 1 ORDER BY {things.place}) AS places"
        f" FROM ({chosen}) GROUP BY uri, frame"
    )
    lists = ", ".join(f"list_select({name}, coalesce(places, [])) AS {name}" for name in _lists(product))
    connection.execute(
        f"CREATE VIEW items AS SELECT * EXCLUDE (places) REPLACE ({lists})"
        f" FROM ({whole}) LEFT JOIN _chosen USING (uri, frame)"
        + ("" if of_things is None else " WHERE places IS NOT NULL OR status <> 'ok'")
    )
    connection.execute(f"CREATE OR REPLACE VIEW {things.view} AS {chosen}")


def _sure(things: Things, min_score: float) -> str:
    return f"({things.sure.format(min_score=repr(float(min_score)))})"


def _lists(product: Product) -> list[str]:
    """The product's own lists: one entry per thing."""
    common = {field.name for field in COMMON}
    own = (field for field in widest_schema(product.name) if field.name not in common)
    return [field.name for field in own if pa.types.is_list(field.type)]
