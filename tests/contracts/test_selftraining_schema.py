"""The loop's schemas are frozen, too: a digest of names, types and nullability per published version."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pytest

from tasks.labels.schema import LABELS, LABELS_WITH_POINTS, LABELS_WITH_SURFACES
from tasks.loop.schemas import TABLES
from tasks.product import kinds

SPECS = {each.schema_id: each.schema for each in (LABELS, LABELS_WITH_POINTS, LABELS_WITH_SURFACES, *TABLES.values())}

# A lineage table of last year must be readable next year: change one of these only together with its version, and say
# how the rows of the version before become rows of the new one (``TableSpec.upgrades``).
FROZEN: dict[str, tuple[int, str]] = {
    "labels.v2": (19, "f705a5beac75fd8b"),
    "labels.v3": (20, "8d1f26fd8cd82ddb"),
    "labels.v4": (21, "d2a8c1208c2738b4"),
    "fingerprints.v1": (7, "8000d729413fc56e"),
    "split_items.v2": (10, "ae7c1045cccaa39b"),
    "candidates.v2": (29, "ec941dfff7799845"),
    "pseudo_labels.v2": (44, "a83d995e1d4b4956"),
    "pseudo_images.v2": (13, "97298e65ee6f86a8"),
    "rounds.v2": (27, "91ca51bbb092eaa9"),
    "models.v2": (17, "f98d660f0d75b01f"),
    "calibrators.v2": (11, "5def470332d704c5"),
    "threshold_sets.v2": (18, "69dbe8b775a578e1"),
    "audits.v2": (10, "38073cf0f40a2b57"),
    "verdicts.v1": (13, "da4a98a0945ff7ec"),
}


def shape_of(schema: pa.Schema) -> tuple[int, str]:
    """Number of columns, and a digest of their names, types and nullability in order."""
    lines = "\n".join(f"{each.name} {each.type} {each.nullable}" for each in schema)
    return len(schema), hashlib.sha256(lines.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_a_published_schema_never_changes(name: str) -> None:
    assert shape_of(SPECS[name]) == FROZEN[name]


def test_every_schema_is_frozen_here() -> None:
    assert SPECS.keys() == set(FROZEN)


def test_every_column_says_what_it_means_and_a_kinds_own_have_other_names() -> None:
    for name, schema in SPECS.items():
        for field in schema:
            assert len((field.metadata or {}).get(b"meaning", b"")) > 5, f"{name}.{field.name} has no meaning"
        assert len(set(schema.names)) == len(schema), f"{name} has a column twice"
    for kind in kinds().values():
        own = [] if kind.loop is None else [*kind.loop.columns, *kind.loop.decided]
        names = [each.name for each in own]
        assert len(set(names)) == len(names) and not set(names) & set(TABLES["pseudo_labels"].schema.names), kind.name
        assert all(len((each.metadata or {}).get(b"meaning", b"")) > 5 for each in own), kind.name
