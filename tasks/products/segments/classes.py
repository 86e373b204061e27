"""The classes that a version's rows speak of: all that its model knows, also those that were never found."""

from __future__ import annotations

from tasks.output.encoding import PartFacts
from tasks.output.listing import read_footers
from tasks.output.views import Views


def classes_of(views: Views) -> dict[int, str]:
    """Class id -> name, ascending: what the newest version's parts say the model knows, and all that was found."""
    rows = views.connection.sql(
        "SELECT label, any_value(name) FROM instances WHERE label IS NOT NULL GROUP BY label ORDER BY label"
    ).fetchall()
    found = {int(label): str(name) if name is not None else f"class {label}" for label, name in rows}
    return dict(sorted((found | known_classes(views)).items()))


def known_classes(views: Views) -> dict[int, str]:
    """Class id -> name of all that the newest version's model knows, as the footer of a part of it says."""
    newest = views.listing.newest
    for _, footer in read_footers(views.listing.store, newest.parts[:1] if newest is not None else ()):
        if not isinstance(footer, Exception):
            try:
                return PartFacts.from_metadata(footer.metadata or {}).class_names
            except ValueError:
                return {}
    return {}
