"""All that datasets and stores get wrong: bad items end as rows with a reason, bad jobs with one clear message."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from infra.seaweedfs import S3Endpoint
from infra.store import open_store
from tests.corpus import Case, write_corpus
from tests.faults import Fault, FaultyS3
from tests.flows.command import SERIAL, ask, impatient, refused, segment, visionmill
from tests.flows.scenes import put_scenes, scene_jpeg
from tests.tasks.ingest.helpers import tar_of
from tests.videos import VideoCase, write_video_corpus

COLUMNS = "uri, frame, status, stage, error_type, error, width, height, notes, len(labels) AS found"
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Case], dict[str, VideoCase]]:
    """Every bad and odd file there is, in one folder."""
    folder = tmp_path_factory.mktemp("corpus")
    images, videos = write_corpus(folder), write_video_corpus(folder)
    whole = tar_of({"good.jpg": scene_jpeg(0), "cut.jpg": scene_jpeg(1)})
    (folder / "cut.tar").write_bytes(whole[:6000])
    (folder / "empty.tar").write_bytes(b"")
    return folder, images, videos


@pytest.fixture(scope="module", params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def rows(
    request: pytest.FixtureRequest,
    corpus: tuple[Path, dict[str, Case], dict[str, VideoCase]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Rows:
    """What one job over all of it leaves, by name."""
    folder, source, output = corpus[0], str(corpus[0]), str(tmp_path_factory.mktemp("out"))
    if request.param == "s3":
        request.getfixturevalue("s3_server")
        source, output = "s3://tests/bad-input/in", "s3://tests/bad-input/out"
        store = open_store(source)
        for path in folder.iterdir():
            store.put(path.name, path.read_bytes())
    summary = segment(source, output, "--frame-stride", "2")
    assert (summary["outcome"], summary["exit_code"]) == ("done", 0)
    assert summary["left_out"] == {"no file name ending": 1}
    assert visionmill("verify", output, "--json").summary["problems"] == []
    found: Rows = defaultdict(list)
    for row in ask(output, f"SELECT {COLUMNS} FROM all_items ORDER BY uri, frame"):
        found[row["uri"].removeprefix(f"{source}/")].append(row)
    return found


def test_every_image_ends_as_the_one_row_it_deserves(
    rows: Rows, corpus: tuple[Path, dict[str, Case], dict[str, VideoCase]]
) -> None:
    cases = {name: case for name, case in corpus[1].items() if name != "no-extension"}
    for name, case in cases.items():
        [row] = rows[name]
        assert row["status"] == case.status, row
        if case.status == "ok":
            assert (row["height"], row["width"]) == case.size_hw, name
            assert row["stage"] is row["error_type"] is row["error"] is None, name
            assert case.note in " ".join(row["notes"]), name
            assert row["found"] is not None, name
        else:
            assert row["stage"] == "decode", row
            assert case.error_type in ("", row["error_type"]), row
            assert case.words in row["error"] and "\n" not in row["error"], row
            assert row["found"] is None, name


def test_a_broken_video_has_rows_up_to_the_break_and_then_one_that_says_so(
    rows: Rows, corpus: tuple[Path, dict[str, Case], dict[str, VideoCase]]
) -> None:
    for name, case in corpus[2].items():
        *good, last = rows[name]
        if not case.error_type:
            good.append(last)
        else:
            assert (last["status"], last["stage"], last["error_type"]) == ("failed", "decode", case.error_type), last
        assert all(row["status"] == "ok" for row in good)
        assert [row["frame"] for row in good] == list(range(0, 2 * len(good), 2)), name
        assert 2 * len(good) >= case.min_frames, name
        if case.frames is not None:
            assert len(good) == (case.frames + 1) // 2, name


def test_broken_tars_say_what_broke(rows: Rows) -> None:
    told = {name: row for name, [row, *_] in rows.items() if ".tar" in name}
    assert told["cut.tar!/good.jpg"]["status"] == "ok"
    broken = [row for row in told.values() if row["status"] != "ok"]
    assert {row["stage"] for row in broken} == {"inventory"}
    assert all("broken tar: " in row["error"] for row in broken)
    assert len(broken) == 2


def test_nothing_else_has_a_row(rows: Rows, corpus: tuple[Path, dict[str, Case], dict[str, VideoCase]]) -> None:
    expected = (set(corpus[1]) | set(corpus[2])) - {"no-extension"}
    assert {name for name in rows if ".tar" not in name} == expected


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system refuses such names itself")
def test_a_name_that_is_no_text_is_a_row_that_shows_it(tmp_path: Path) -> None:
    put_scenes(open_store(str(tmp_path / "in")), 1)
    shutil.copy(tmp_path / "in" / "scene 0.jpg", os.fsencode(tmp_path / "in") + b"/caf\xe9.jpg")
    assert segment(tmp_path / "in", tmp_path / "out")["items"]["failed"] == 1
    [row] = ask(tmp_path / "out", "SELECT uri, stage, error FROM failures")
    assert row["uri"].endswith("caf\\xe9.jpg")
    assert (row["stage"], row["error"]) == ("inventory", "its name is not valid UTF-8")


# --- stores on bad days


def test_a_full_disk_ends_the_job_with_one_message_and_the_next_run_finishes_its_plan(tmp_path: Path) -> None:
    put_scenes(open_store(str(tmp_path / "in")), 8)
    segment(tmp_path / "in", tmp_path / "measured")
    sizes = {info.key: info.size_bytes for info in open_store(str(tmp_path / "measured")).list()}
    part = min(size for key, size in sizes.items() if key.startswith("segments/"))
    others = max(size for key, size in sizes.items() if not key.startswith("segments/"))
    assert others < 0.9 * part, "files may grow to anything but a part; another one is some bytes shorter or longer"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((others + part) // 2, before[1]))
    try:
        message = refused(1, "segment", tmp_path / "in", tmp_path / "out", *SERIAL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "no space left" in message
    second = segment(tmp_path / "in", tmp_path / "out")
    assert second["plan_joined"] and second["items"]["ok"] == 8


@pytest.fixture
def bad_day(faulty_s3: FaultyS3, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> tuple[FaultyS3, str, str]:
    """(faults to come, source, output): four scenes in a bucket behind the proxy."""
    impatient(monkeypatch)
    put_scenes(open_store(f"{s3_bucket}/in"), 4)
    return faulty_s3, f"{s3_bucket}/in", f"{s3_bucket}/out"


@pytest.mark.s3
@pytest.mark.parametrize(
    ("fault", "error_type"),
    [
        (Fault("status", status=500, code="InternalError"), "StoreUnavailable"),
        (Fault("status", status=503, code="SlowDown"), "StoreUnavailable"),
        (Fault("torn_body", after_bytes=700), "StoreUnavailable"),
        (Fault("drop_response"), "StoreUnavailable"),
        (Fault("status", status=403, code="AccessDenied"), "AccessDenied"),
        (Fault("status", status=404, code="NoSuchKey"), "ObjectGone"),
    ],
)
def test_an_object_that_the_store_does_not_hand_out_is_a_row_and_its_neighbours_have_theirs(
    bad_day: tuple[FaultyS3, str, str], fault: Fault, error_type: str
) -> None:
    faults, source, output = bad_day
    fault.method, fault.path, fault.times = "GET", "scene 2.jpg", None
    faults.add(fault)
    assert segment(source, output)["items"]["ok"] == 3
    [row] = ask(output, "SELECT uri, stage, error_type, error FROM failures")
    assert (row["uri"], row["stage"], row["error_type"]) == (f"{source}/scene 2.jpg", "fetch", error_type)
    faults.clear()
    assert segment(source, output, "--retry-failed")["items"]["ok"] == 1


@pytest.mark.s3
def test_a_slow_and_shaky_store_costs_time_only(bad_day: tuple[FaultyS3, str, str]) -> None:
    faults, source, output = bad_day
    faults.add(Fault("slow_answer", method="GET", path=".jpg", times=None, bytes_per_s=40_000))
    shaky = [
        Fault("status", method="GET", path="scene 0.jpg", status=503),
        Fault("torn_body", method="GET", path="scene 1.jpg", after_bytes=700),
        Fault("drop_response", method="PUT", path="segments/"),
        Fault("status", method="PUT", path="_plans/", status=500, code="InternalError"),
    ]
    for fault in shaky:
        faults.add(fault)
    assert segment(source, output)["items"] == {"in_inventory": 4, "ok": 4, "failed": 0, "quarantined": 0} | {
        name: count for name, count in segment_counts(output).items()
    }
    assert all(fault.seen == 1 for fault in shaky)


def segment_counts(output: str) -> dict[str, int]:
    """Instances and rows as the views count them."""
    [counts] = ask(output, "SELECT sum(len(labels))::INT AS instances, count(*) AS rows FROM items")
    return counts


@pytest.mark.s3
@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (Fault("status", method="PUT", status=503), "503"),
        (Fault("status", method="PUT", status=500, code="InternalError"), "500"),
        (Fault("drop_request"), "no complete answer"),
        (Fault("status", method="PUT", status=507, code="InsufficientStorage"), "no space left"),
        (Fault("status", method="PUT", path="segments/", status=507, code="InsufficientStorage"), "no space left"),
        (Fault("status", method="PUT", status=403, code="AccessDenied"), "access denied"),
        (Fault("status", method="GET", path="", status=503), "503"),
    ],
)
def test_a_store_that_is_down_or_full_ends_the_job_with_one_message(
    bad_day: tuple[FaultyS3, str, str], fault: Fault, named: str
) -> None:
    faults, source, output = bad_day
    fault.times = None
    faults.add(fault)
    assert named in refused(1, "segment", source, output, *SERIAL).lower()
    faults.clear()
    assert segment(source, output)["items"]["ok"] == 4


@pytest.mark.s3
def test_a_missing_bucket_is_named(s3_bucket: str, tmp_path: Path) -> None:
    put_scenes(open_store(s3_bucket), 1)
    assert "no-such-bucket" in refused(1, "segment", "s3://no-such-bucket/in", tmp_path / "out", *SERIAL)
    assert "no-such-bucket" in refused(1, "segment", s3_bucket, "s3://no-such-bucket/out", *SERIAL)
    assert "no-such-bucket" in refused(1, "query", "s3://no-such-bucket/out", "SELECT 1")


@pytest.mark.s3
@pytest.mark.parametrize("wrong", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_named_and_not_shown(
    s3_bucket: str, s3_server: S3Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    put_scenes(open_store(s3_bucket), 1)
    monkeypatch.setenv(wrong, "wrong-and-still-not-to-be-shown")
    for command in (
        ("segment", s3_bucket, tmp_path / "out", *SERIAL),
        ("segment", tmp_path, s3_bucket, *SERIAL),
        ("query", s3_bucket, "SELECT 1"),
    ):
        message = refused(1, *command)
        assert "denied" in message.lower() or "credentials" in message.lower(), message
        assert "wrong-and-still" not in message and s3_server.secret_key not in message


@pytest.mark.s3
@pytest.mark.parametrize("command", ["segment", "query", "export", "verify", "report"])
def test_credentials_inside_a_uri_are_refused_and_not_repeated(tmp_path: Path, command: str) -> None:
    uri = "s3://AKIAEXAMPLE:hunter2hunter2@bucket/x"
    words = {
        "segment": ("segment", uri, tmp_path / "out", *SERIAL),
        "query": ("query", uri, "SELECT 1"),
        "export": ("export", uri, tmp_path / "x.json", "--to", "coco"),
        "verify": ("verify", uri),
        "report": ("report", uri),
    }[command]
    said = visionmill(*words, "--json", exit_code=2)
    assert "credentials" in said.stderr
    assert "hunter2" not in said.stdout + said.stderr
