"""The classes that rows speak of: from the model's own record when a run left it, else those that were found."""

from __future__ import annotations

from tasks.results.run_facts import runs_of, weights_of
from tasks.results.views import Views


def classes_of(views: Views) -> dict[int, str]:
    """Class id -> name, ascending: all that the model knows if its record is at hand, and all that was found."""
    newest = views.listing.newest
    weights = weights_of(runs_of(views.listing.store, newest.fingerprint)) if newest is not None else {}
    recorded = {int(each["id"]): str(each["name"]) for each in weights.get("classes", ())}
    return dict(sorted((classes_found(views) | recorded).items()))


def classes_found(views: Views) -> dict[int, str]:
    """Class id -> name of everything in the view ``instances``, ascending."""
    rows = views.connection.sql(
        "SELECT label, any_value(name) FROM instances WHERE label IS NOT NULL GROUP BY label ORDER BY label"
    ).fetchall()
    return {int(label): str(name) if name is not None else f"class {label}" for label, name in rows}
