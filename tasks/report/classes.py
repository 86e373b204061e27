"""The classes that a version's rows speak of: all that its model knows, also those that were never found."""

from __future__ import annotations

from infra.errors import StoreError
from tasks.output.encoding import PartFacts
from tasks.output.listing import read_footers
from tasks.output.runs import list_runs, read_run
from tasks.output.views import Views


def classes_of(views: Views) -> dict[int, str]:
    """Class id -> name, ascending: what the newest version's parts say the model knows, and all that was found.

    The product's view of things has ``label`` and ``name``.
    """
    assert views.product is not None, "an output without a product has no classes"
    assert views.product.things is not None, f"{views.product.name} has no things, so it has no classes"
    rows = views.connection.sql(
        f"SELECT label, any_value(name) FROM {views.product.things.view} WHERE label IS NOT NULL"
        " GROUP BY label ORDER BY label"
    ).fetchall()
    found = {int(label): str(name) if name is not None else f"class {label}" for label, name in rows}
    return dict(sorted((found | known_classes(views)).items()))


def known_classes(views: Views) -> dict[int, str]:
    """Class id -> name of all that the newest version's model knows, as the footer of a part of it says."""
    facts = _facts(views)
    return {} if facts is None else facts.class_names


def model_of(views: Views) -> str:
    """What made the newest version's rows, ``name@digest``; empty where nothing says it."""
    facts = _facts(views)
    return "" if facts is None else facts.version.model


def file_ids_of(views: Views) -> dict[int, int | str]:
    """Class id -> what the labels that the model learnt from call it, where any differs.

    The newest run of the version remembers the lineage of its weights.
    """
    newest, store = views.listing.newest, views.listing.store
    for run_id in reversed(list_runs(store)) if newest is not None else ():
        try:
            run = read_run(store, run_id)
        except StoreError:
            continue  # a damaged record of one run
        if newest is not None and run.version.get("fingerprint") == newest.fingerprint:
            found = run.weights.get("lineage", {}).get("file_ids", {})
            return {int(label): file_id for label, file_id in found.items()}
    return {}


def _facts(views: Views) -> PartFacts | None:
    """The footer of one of the newest version's parts: they are all of one model."""
    newest = views.listing.newest
    for _, footer in read_footers(views.listing.store, newest.parts[:1] if newest is not None else ()):
        if not isinstance(footer, Exception):
            try:
                return PartFacts.from_metadata(footer.metadata or {})
            except ValueError:
                return None
    return None
