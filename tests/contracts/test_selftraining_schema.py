"""The loop's schemas are frozen, too: a digest of names, types and nullability per published version."""

from __future__ import annotations

import hashlib

import pytest

from tasks.labels.schema import LABELS
from tasks.loop.schemas import TABLES

SPECS = {each.schema_id: each.schema for each in (LABELS, *TABLES.values())}

# A lineage table of last year must be readable next year: change one of these only together with its version.
FROZEN: dict[str, tuple[int, str]] = {
    "labels.v2": (19, "f705a5beac75fd8b"),
    "fingerprints.v1": (7, "8000d729413fc56e"),
    "split_items.v1": (10, "ae7c1045cccaa39b"),
    "candidates.v1": (52, "b70d70ac7090e0a4"),
    "pseudo_labels.v1": (77, "3dae6e46e5ab01e4"),
    "pseudo_images.v1": (17, "39507c08f625fe4d"),
    "rounds.v1": (33, "3fcf55e07a986b59"),
    "models.v1": (17, "8f802b258e2c5722"),
    "calibrators.v1": (11, "80f1824504121998"),
    "threshold_sets.v1": (18, "57ce22b934473c08"),
    "audits.v1": (11, "85f0e75fb6b1604e"),
    "verdicts.v1": (13, "da4a98a0945ff7ec"),
}


def shape_of(name: str) -> tuple[int, str]:
    """Number of columns, and a digest of their names, types and nullability in order."""
    schema = SPECS[name]
    lines = "\n".join(f"{each.name} {each.type} {each.nullable}" for each in schema)
    return len(schema), hashlib.sha256(lines.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_a_published_schema_never_changes(name: str) -> None:
    assert shape_of(name) == FROZEN[name]


def test_every_schema_is_frozen_here() -> None:
    assert SPECS.keys() == set(FROZEN)


def test_every_column_says_what_it_means() -> None:
    for name, schema in SPECS.items():
        for field in schema:
            assert len((field.metadata or {}).get(b"meaning", b"")) > 5, f"{name}.{field.name} has no meaning"
        assert len(set(schema.names)) == len(schema), f"{name} has a column twice"
