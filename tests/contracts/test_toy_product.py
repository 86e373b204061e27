"""A product that no file of ours names goes through everything: its verb, query, export, report and verify."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tasks.products
from infra.errors import UsageError
from modelkit import registry
from tasks import product
from tasks.output.encoding import write_parquet
from tests.flows.command import DIGITS, ROOT, end, start, visionmill
from tests.toys.palette import PRODUCT, MainColours

QUICK = ("--ray", "none", "--no-prefect", "--compile", "off", "--json")
UNTRAINED = ("--model", "main_colours", "--weights", "random:0")
RED, BLUE = (224, 32, 32), (32, 32, 224)


@pytest.fixture
def palette() -> Iterator[None]:
    """The toy product and its model, registered as an installed package would do it."""
    with product.temporary_registrations(), registry.temporary_registrations():
        registry.register_model("main_colours", architecture="MainColours", kind="palette")(MainColours)
        product.register(PRODUCT)
        yield


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A quarter, a half and the whole of a picture is red, the rest of it blue; and a file that is no picture."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, red in (("a", 16), ("b", 32), ("c", 64)):
        pixels = np.full((64, 64, 3), BLUE, np.uint8)
        pixels[:red] = RED
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "d.png").write_bytes(b"no picture")
    return folder


def test_a_product_that_no_file_names_goes_through_everything(palette: None, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    painted = visionmill("paint", pictures, output, *QUICK, "--min-share", "0.3")
    counts = {"in_inventory": 4, "rows": 4, "ok": 3, "failed": 1, "quarantined": 0, "colours": 4}
    assert painted.summary["items"] == counts
    assert "FROM colours" in painted.stderr.splitlines()[-1], "the example is over the product's views"
    (part,) = output.glob("palette/**/*.parquet")
    assert pq.read_schema(part).names[-2:] == ["colours", "shares"]
    assert b'"min_share": 0.3' in pq.read_metadata(part).metadata[b"visionmill.version"]

    sql = "SELECT parse_filename(uri) AS name, colour, share FROM colours ORDER BY ALL"
    assert [tuple(row.values()) for row in visionmill("query", output, sql, "--json").summary["rows"]] == [
        ("a.png", "#2020e0", 0.75), ("b.png", "#2020e0", 0.5), ("b.png", "#e02020", 0.5), ("c.png", "#e02020", 1.0),
    ]  # fmt: skip
    assert visionmill("query", output, "SELECT count(*) AS n FROM failures", "--json").summary["rows"] == [{"n": 1}]

    exported = visionmill("export", output, tmp_path / "site" / "colours.css", "--to", "css", "--json").summary
    assert (exported["num_colours"], exported["num_items"], exported["num_skipped"]) == (2, 3, 1)
    assert "color: #2020e0" in (tmp_path / "site" / "colours.css").read_text()

    page = (output / "report" / "index.html").read_text()
    assert "Palettes of in" in page and page.count("data:image/webp") == 6 and "Plainest" in page and "#2020e0" in page

    verified = visionmill("verify", output, "--deep", "--json").summary
    assert (verified["num_rows"], verified["problems"]) == (4, [])
    assert visionmill("paint", pictures, output, *QUICK, "--min-share", "0.3").summary["outcome"] == "nothing_to_do"


def test_what_the_product_says_cannot_be_is_a_problem_of_verify(palette: None, pictures: Path, tmp_path: Path) -> None:
    visionmill("paint", pictures, tmp_path / "out", *QUICK, "--no-report")
    (part,) = (tmp_path / "out").glob("palette/**/*.parquet")
    opened = pq.ParquetFile(part)
    rows = opened.read().to_pylist()
    rows[0]["shares"] = [0.2, 0.9]
    table = pa.Table.from_pylist(rows, schema=opened.schema_arrow)
    kept = {name.decode(): value.decode() for name, value in opened.metadata.metadata.items() if b"visionmill" in name}
    part.write_bytes(write_parquet(table, kept, PRODUCT))
    said = visionmill("verify", tmp_path / "out", "--deep", "--json", exit_code=1).summary["problems"]
    assert len(said) == 1 and "shares [0.2" in said[0]


def test_another_products_model_is_refused_with_the_verb_that_takes_it(
    palette: None, pictures: Path, tmp_path: Path
) -> None:
    said = visionmill("segment", pictures, tmp_path / "out", *QUICK, *UNTRAINED, exit_code=2)
    assert "'palette'" in said.summary["error"] and "visionmill paint" in said.summary["hint"]


def test_an_output_of_two_products_is_asked_about_one_of_them(palette: None, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    visionmill("paint", pictures, output, *QUICK, "--no-report")
    assert visionmill("segment", pictures, output, *QUICK, *DIGITS).summary["report"], "of what the job wrote"
    refused = visionmill("query", output, "SELECT 1", "--json", exit_code=2).summary
    assert "palette and segments" in refused["error"] and "--product" in refused["hint"]
    for name, view in (("palette", "colours"), ("segments", "instances")):
        told = visionmill("query", output, f"SELECT count(*) AS n FROM {view}", "--product", name, "--json").summary
        assert told["rows"][0]["n"] >= 0
        assert visionmill("report", output, "--product", name, "--samples", "0", "--json").summary["ok"]
    both = visionmill("verify", output, "--deep", "--json").summary
    assert (both["num_rows"], both["problems"]) == (8, [])


def test_the_product_of_an_installed_package_is_found_by_its_entry_point(tmp_path: Path) -> None:
    record = tmp_path / "palette-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: palette\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[visionmill.products]\npalette = tests.toys.palette:PRODUCT\n")
    said = end(start("paint", "--help", PYTHONPATH=f"{ROOT}:{tmp_path}")).stdout
    assert "Paint a whole dataset." in said and "--min-share" in said
    (record / "entry_points.txt").write_text("[visionmill.products]\npalette = tests.toys.nowhere:PRODUCT\n")
    said = end(start("query", tmp_path, "SELECT 1", PYTHONPATH=f"{ROOT}:{tmp_path}"), exit_code=2).stderr
    assert "tests.toys.nowhere" in said and "holds no results" in said, "a broken one is told, and spoils no other"


def test_the_kind_of_an_installed_package_is_found_by_its_entry_point_and_imported_when_it_is_asked_for(
    tmp_path: Path,
) -> None:
    record = tmp_path / "colours-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: colours\nVersion: 1.0\n")
    module = "tests.toys.dominant_colour"
    (record / "entry_points.txt").write_text(f"[visionmill.kinds]\ndominant_colour = {module}:KIND\n")
    program = (
        "import sys; from tasks.product import find_product, kind_names, stores; "
        f"print('dominant_colour' in kind_names(), {module!r} in sys.modules, "
        f"stores(find_product('segments'), 'dominant_colour'), {module!r} in sys.modules)"
    )
    path = f"{ROOT}:{tmp_path}"
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert said.stdout.split() == ["True", "False", "True", "True"], said.stderr


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The products of tests/toys/folders, found as those of tasks/products are."""
    monkeypatch.setattr("tasks.products.__path__", [*tasks.products.__path__, str(ROOT / "tests/toys/folders")])
    with product.temporary_registrations(), registry.temporary_registrations():
        product._discover.cache_clear()
        yield
    product._discover.cache_clear()


def test_a_folder_is_a_product_and_its_model_needs_no_other_place(
    folders: None, pictures: Path, tmp_path: Path
) -> None:
    done = visionmill("meter", pictures, tmp_path / "out", *QUICK).summary
    assert (done["items"]["ok"], done["items"]["failed"]) == (3, 1)
    sql = "SELECT parse_filename(uri) AS name, shade::DOUBLE AS shade FROM items WHERE status = 'ok' ORDER BY 1"
    expected = [np.mean([RED] * red + [BLUE] * (64 - red)) / 255 for red in (16, 32, 64)]
    rows = visionmill("query", tmp_path / "out", sql, "--json").summary["rows"]
    assert [row["shade"] for row in rows] == pytest.approx(expected, abs=1e-4)
    assert visionmill("verify", tmp_path / "out", "--deep", "--json").summary["problems"] == []
    assert "mean_grey" in visionmill("models", "list").stdout
    assert not {"shade"} & product.kinds().keys(), "models of it are neither trained nor judged"
    with pytest.raises(UsageError, match="neither trained nor judged"):
        product.find_kind("shade")


def test_a_folder_without_a_record_is_told_and_spoils_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "halfdone").mkdir()
    (tmp_path / "halfdone" / "__init__.py").write_text("")
    monkeypatch.setattr("tasks.products.__path__", [*tasks.products.__path__, str(tmp_path)])
    with product.temporary_registrations():
        product._discover.cache_clear()
        assert "segments" in product.products()
    product._discover.cache_clear()
    assert "tasks.products.halfdone has no PRODUCT" in caplog.text


@pytest.mark.parametrize(
    ("made", "said"),
    [(["shares"], r"'palette': \['colours'\] are missing"), (["colours", "shares", "mood"], r"\['mood'\] are in none")],
)
def test_columns_that_are_not_those_of_the_schema_are_named(
    palette: None, pictures: Path, tmp_path: Path, made: list[str], said: str
) -> None:
    wrong = dataclasses.replace(PRODUCT, columns=lambda found, names: {name: [None] * len(found) for name in made})
    with product.temporary_registrations():
        product._PRODUCTS["palette"] = wrong
        error = visionmill("paint", pictures, tmp_path / "out", *QUICK, exit_code=1).summary["error"]
    assert re.search(said, error)


def test_a_result_of_the_wrong_type_costs_its_own_row_only(palette: None, pictures: Path, tmp_path: Path) -> None:
    def columns(found: Sequence[Any], names: Mapping[int, str]) -> dict[str, list[Any]]:
        made = dict(PRODUCT.columns(found, names))
        made["shares"] = [share and (["much"] if len(share) == 1 else share) for share in made["shares"]]
        return made

    with product.temporary_registrations():
        product._PRODUCTS["palette"] = dataclasses.replace(PRODUCT, columns=columns)
        done = visionmill("paint", pictures, tmp_path / "out", *QUICK, "--no-report").summary
    assert (done["items"]["ok"], done["items"]["failed"]) == (2, 2)
    assert any("the column 'shares' of the product 'palette'" in each for each in map(str, done["error_sample"]))


def test_an_overlay_that_fails_says_whose_it_is_and_rows_stay(palette: None, pictures: Path, tmp_path: Path) -> None:
    def overlay(image: np.ndarray, row: Mapping[str, Any], *, in_strip: bool = False) -> np.ndarray:
        raise KeyError("colour")

    with product.temporary_registrations():
        product._PRODUCTS["palette"] = dataclasses.replace(PRODUCT, overlay=overlay)
        done = visionmill("paint", pictures, tmp_path / "out", *QUICK)
    assert done.summary["items"]["ok"] == 3 and done.summary["report"] is None
    assert "overlay of the product 'palette' failed: KeyError: 'colour'" in done.stderr
