from __future__ import annotations

import dataclasses
import math
import re

import pytest

from tasks.output import layout
from tasks.output.layout import PartName, PlanName


def a_version(**changes: object) -> layout.Version:
    settings: dict = {
        "model": "demo@0123",
        "model_digest": "ab" * 32,
        "parameters": {"stride": 5, "score_threshold": 0.25},
        "schema": "segments.v1",
    }
    return layout.make_version("segments", **(settings | changes))


def test_names_are_those_of_the_design() -> None:
    version = a_version()
    fp = version.fingerprint
    assert re.fullmatch(r"[0-9a-f]{16}", fp)
    assert layout.part_key(version, "00ff") == f"segments/version={fp}/part-00ff.parquet"
    assert layout.plan_key(version, 3) == f"_plans/version={fp}/000003.parquet"
    assert layout.run_key("20261121T101500-ab12") == "_runs/20261121T101500-ab12.json"
    assert layout.LEASE_KEY == "_lease.json"
    assert layout.product_prefix("segments") == "segments/"


def test_keys_parse_back_to_what_made_them() -> None:
    version = a_version()
    assert layout.parse_part_key(layout.part_key(version, "00ff")) == PartName("segments", version.fingerprint, "00ff")
    assert layout.parse_plan_key(layout.plan_key(version, 12)) == PlanName(version.fingerprint, 12)
    assert layout.parse_run_key(layout.run_key("r-1")) == "r-1"


@pytest.mark.parametrize(
    "stray",
    [
        "segments/version=0123456789abcdef/part-1.parquet.tmp",
        "segments/version=0123456789abcdef/deeper/part-1.parquet",
        "segments/version=short/part-1.parquet",
        "Some-thing/version=0123456789abcdef/part-1.parquet",
        "segments/part-1.parquet",
        "_plans/version=0123456789abcdef/000001.parquet",
        "",
    ],
)
def test_a_stray_object_is_nobodys_part(stray: str) -> None:
    assert layout.parse_part_key(stray) is None


def test_plan_keys_sort_by_number() -> None:
    version = a_version()
    keys = [layout.plan_key(version, n) for n in (1, 2, 9, 10, 99, 100, 1000)]
    assert keys == sorted(keys)


def test_fingerprint_ignores_the_order_of_parameters() -> None:
    assert a_version(parameters={"a": 1, "b": 2}) == a_version(parameters={"b": 2, "a": 1})


@pytest.mark.parametrize(
    "change",
    [
        {"model_digest": "cd" * 32},
        {"parameters": {"stride": 6, "score_threshold": 0.25}},
        {"parameters": {"stride": 5}},
        {"schema": "segments.v2"},
    ],
)
def test_fingerprint_changes_with_everything_that_changes_rows(change: dict) -> None:
    assert a_version(**change).fingerprint != a_version().fingerprint


def test_fingerprint_does_not_depend_on_what_a_model_is_called() -> None:
    assert a_version(model="other name@0123").fingerprint == a_version().fingerprint


def test_fingerprint_never_changes_between_releases() -> None:
    # A changed fingerprint would orphan every output in the world: this value is frozen
    # (sha256sum of '{"model_digest":"00",...}' with sorted keys, no spaces and \\u00fc for the ü).
    assert layout.fingerprint("segments", "00", {"a": 1.5, "ü": [True, None]}, "segments.v1") == "02a1898bc2ac7a8f"


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), b"bytes", {1, 2}])
def test_parameters_that_are_not_json_are_refused(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        a_version(parameters={"x": value})


def test_a_version_survives_its_json_form() -> None:
    version = a_version(parameters={"size": (3, 4), "name": "ü"})
    assert layout.version_from_json(layout.version_to_json(version)) == version


def test_a_tampered_version_record_is_refused() -> None:
    plain = layout.version_to_json(a_version())
    with pytest.raises(ValueError, match="its content is"):
        layout.version_from_json(plain | {"model_digest": "ef" * 32})


def test_differences_name_every_setting_and_both_values() -> None:
    held = a_version()
    wanted = a_version(parameters={"stride": 1, "crop": True}, schema="segments.v2")
    assert layout.differences(held, wanted) == [
        "crop: not set here, True asked for",
        "schema: segments.v1 here, segments.v2 asked for",
        "score_threshold: 0.25 here, not set asked for",
        "stride: 5 here, 1 asked for",
    ]
    assert layout.differences(held, dataclasses.replace(held)) == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", ".hidden", "ü"])
def test_names_that_could_leave_their_folder_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        layout.part_key(a_version(), name)
    with pytest.raises(ValueError, match="must be"):
        layout.run_key(name)
    with pytest.raises(ValueError, match="counted from 1"):
        layout.plan_key(a_version(), 0)
