"""Schemas are frozen: what is written here may only change together with the version in the schema's name."""

from __future__ import annotations

import pytest

from infra.errors import StoreError, UsageError
from tasks.output.schema import schema_named
from tasks.product import products

# name, type, nullable: in order. A reader somewhere relies on each of these lines.
FROZEN = {
    "segments.v1": [
        ("uri", "string", False),
        ("etag", "string", False),
        ("media", "string", False),
        ("frame", "int32", False),
        ("pts_s", "double", True),
        ("width", "int32", True),
        ("height", "int32", True),
        ("status", "string", False),
        ("stage", "string", True),
        ("error_type", "string", True),
        ("error", "string", True),
        ("notes", "list<item: string>", True),
        ("model", "string", False),
        ("run_id", "string", False),
        ("shard_id", "string", False),
        ("processed_at", "timestamp[us, tz=UTC]", False),
        ("labels", "list<item: int32>", True),
        ("names", "list<item: string>", True),
        ("scores", "list<item: float>", True),
        ("boxes_xyxy", "list<item: list<item: float>>", True),
        ("areas", "list<item: int64>", True),
        ("rles", "list<item: binary>", True),
        ("is_thing", "list<item: bool>", True),
        ("track_ids", "list<item: int64>", True),
    ],
}
FROZEN["segments_measured.v1"] = [
    *FROZEN["segments.v1"],
    ("q_stability", "list<item: float>", True),
    ("q_tta", "list<item: float>", True),
]
_PAIRS = "list<item: list<item: int32>>"
FROZEN["landmarks.v1"] = [
    *FROZEN["segments.v1"][:16],
    ("labels", "list<item: int32>", True),
    ("names", "list<item: string>", True),
    ("scores", "list<item: float>", True),
    ("boxes_xyxy", "list<item: list<item: float>>", True),
    ("keypoints_xy", "list<item: list<item: list<item: float>>>", True),
    ("keypoint_scores", "list<item: list<item: float>>", True),
    ("visibility", "list<item: list<item: uint8>>", True),
    ("surfaces", "list<item: binary>", True),
    ("surface_origins_xy", _PAIRS, True),
    ("track_ids", "list<item: int64>", True),
    (
        "keypoint_set",
        f"struct<names: list<item: string>, flip_pairs: {_PAIRS}, skeleton: {_PAIRS}, sigmas: list<item: double>>",
        True,
    ),
]
FROZEN["landmarks_measured.v1"] = [*FROZEN["landmarks.v1"], ("q_views", "list<item: list<item: float>>", True)]
ALL = [(name, schema_named(product.name, name)) for product in products().values() for name in product.schemas()]


@pytest.mark.parametrize("name", FROZEN)
def test_a_published_schema_never_changes(name: str) -> None:
    assert name in dict(ALL), f"{name} was published and must stay readable"
    assert [(field.name, str(field.type), field.nullable) for field in dict(ALL)[name]] == FROZEN[name]


def test_every_schema_is_frozen_here() -> None:
    assert {name for name, _ in ALL} <= set(FROZEN)


def test_every_column_says_what_it_means() -> None:
    for name, schema in ALL:
        for field in schema:
            metadata = field.metadata or {}
            assert len(metadata.get(b"meaning", b"")) > 8, f"{name}.{field.name} has no meaning"


def test_plain_jobs_write_a_schema_that_is_known() -> None:
    for product in products().values():
        assert product.schema in product.schemas()


def test_unknown_products_and_schemas_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="there is no product 'nonsense'"):
        schema_named("nonsense", "nonsense.v1")
    with pytest.raises(StoreError, match=r"segments\.v99.*of segments there is segments\.v1"):
        schema_named("segments", "segments.v99")
