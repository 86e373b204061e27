"""Tables of the first version (``tests/fixtures/outputs_2026_11``) are read in today's words, and decide the same."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from infra.errors import StoreError
from infra.store import Store, open_store
from tasks.loop.replay import replay
from tasks.loop.schemas import MODELS, PSEUDO_IMAGES, PSEUDO_LABELS, ROUNDS, SPLIT_ITEMS, TABLES, THRESHOLD_SETS
from tasks.loop.splits import read_manifest
from tasks.output.query import run_query
from tasks.output.tables import append, list_tables, read

ARCHIVE = Path(__file__).parents[2] / "fixtures" / "outputs_2026_11" / "outputs.tar.xz"
KINDS = ("instance", "semantic")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two loops remember."""
    place = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as tar:
        wanted = [each for each in tar if each.name.split("/")[0] in KINDS and each.name.split("/")[1] in
                  ("lineage", "splits")]  # fmt: skip
        tar.extractall(place, members=wanted, filter="data")
    return place


@pytest.fixture(params=KINDS)
def store(folder: Path, request: pytest.FixtureRequest) -> Store:
    return open_store(str(folder / request.param))


def test_every_old_table_has_todays_columns(store: Store) -> None:
    found = list_tables(store)
    assert len(found) >= 9 and {stored.version for each in found.values() for stored in each} == {1}
    for name in found:
        table = read(store, TABLES[name])
        assert table.num_rows and table.schema.names[: len(TABLES[name].schema)] == TABLES[name].schema.names, name
    kind = store.uri.rpartition("/")[2]
    assert {row["kind"] for spec in (MODELS, ROUNDS, PSEUDO_LABELS) for row in read(store, spec).to_pylist()} == {kind}
    assert set(read(store, SPLIT_ITEMS)["split"].to_pylist()) == {"train", "calibration", "gate", "test", "unlabelled"}
    labels = read(store, PSEUDO_LABELS).to_pylist()
    for row in labels:
        (x0, y0, x1, y1), size = row["box_xyxy"], (row["width"], row["height"])
        assert 0 <= x0 <= x1 <= size[0] + 1 and 0 <= y0 <= y1 <= size[1] + 1
        assert (row["media"], row["frame"], row["pts_s"], row["split"]) == ("image", 0, None, "unlabelled")
        assert row["accept_mask"] in (True, False) and (row["weight"] > 0) == (row["decision"] == "accept")
    assert sum(row["n_candidates"] for row in read(store, PSEUDO_IMAGES).to_pylist()) == len(labels)


def test_an_old_round_is_decided_again_alike(folder: Path) -> None:
    """Where it can be: loops of that time did not keep the calibrators of quality, which objects need."""
    store = open_store(str(folder / "semantic"))
    [record] = read(store, ROUNDS).to_pylist()
    [student] = [row for row in read(store, MODELS).to_pylist() if row["model_id"] == record["candidate_id"]]
    assert replay(store, record["run_id"], record["round"], label_set_id=student["label_set_id"]).same


def test_an_old_division_has_todays_words(store: Store) -> None:
    [record] = read(store, ROUNDS).to_pylist()
    manifest = read_manifest(store, record["splits_manifest_sha256"])
    assert manifest is not None and manifest.manifest_sha256 != record["splits_manifest_sha256"]
    assert set(manifest.counts) <= {"train", "calibration", "gate", "test", "unlabelled", "excluded"}


def test_old_and_new_rows_are_one_view(folder: Path, tmp_path: Path) -> None:
    store = open_store(str(folder / "instance"))
    query = "SELECT kind, decision, count(*) AS n, min(box_xyxy[3] - box_xyxy[1]) > 0 AS wide FROM pseudo_labels"
    before = run_query(store.uri, f"{query} GROUP BY ALL ORDER BY ALL").to_pylist()
    assert {row["kind"] for row in before} == {"instance"} and all(row["wide"] for row in before)
    lineage = run_query(store.uri, "SELECT count(*) AS n, count(student_id) AS students FROM label_lineage").to_pylist()
    data = run_query(store.uri, "SELECT origin, count(*) AS n FROM model_data GROUP BY ALL ORDER BY ALL").to_pylist()
    assert lineage[0]["n"] == lineage[0]["students"] == sum(row["n"] for row in before)
    assert {row["origin"] for row in data} == {"human labels", "pseudo-label"}
    other = open_store(str(folder / "semantic"))
    labels = read(other, PSEUDO_LABELS)
    append(store, PSEUDO_LABELS, labels, round_number=1, kind="semantic")
    append(store, THRESHOLD_SETS, read(other, THRESHOLD_SETS))
    after = run_query(store.uri, f"{query} GROUP BY ALL ORDER BY ALL").to_pylist()
    assert sum(row["n"] for row in after) == sum(row["n"] for row in before) + labels.num_rows
    assert read(store, PSEUDO_LABELS).num_rows == sum(row["n"] for row in after)


def test_a_later_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    store = open_store(str(tmp_path / "out"))
    store.put("lineage/rounds.v9/part-0123456789abcdef.parquet", b"whatever")
    with pytest.raises(StoreError, match=r"it is rounds\.v9") as refused:
        read(store, ROUNDS)
    assert "later version of visionmill" in (refused.value.hint or "")
