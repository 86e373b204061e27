"""The command line from the source to the answer, over a folder and over S3: what a user gets, run after run."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import duckdb
import pytest
from pycocotools.coco import COCO

from infra.errors import BucketMissing
from infra.store import open_store
from tasks.output.lease import hold_lease
from tasks.product import products
from tests.flows.command import DIGITS, SERIAL, ask, refused, segment, start, visionmill
from tests.flows.scenes import put_scenes, scene_jpeg
from tests.videos import make_video

NUM_SCENES, NUM_FRAMES = 4, 6

EXPORT = ("models", "export", "ssdlite320_mobilenet_v3_large:random:0")
REFUSED = ("models", "export", "keypoint_rcnn:random:0")


@pytest.fixture
def place(store_uri: str) -> tuple[str, str]:
    """(source, output): scenes, a video and a broken file; in a folder, and in a bucket."""
    store = open_store(f"{store_uri}/in")
    put_scenes(store, NUM_SCENES)
    store.put("deep/er/clip #1.mp4", make_video("mp4", "libx264", frames=NUM_FRAMES))
    store.put("broken.jpg", b"this was never an image\n")
    store.put("readme.txt", b"left out, and said so\n")
    return store.uri, f"{store_uri}/out"


def wait_for_a_shard(driver: subprocess.Popen[str], output: str) -> None:
    """Until the driver's first shard is committed."""
    store = open_store(output)
    while driver.poll() is None:
        with suppress(BucketMissing):  # the output's folder is made by the first write
            if list(store.list("segments/")):
                return
        time.sleep(0.02)


def test_a_dataset_is_segmented_once_and_only_what_is_new_or_changed_or_failed_again(place: tuple[str, str]) -> None:
    source, output = place
    said = visionmill("segment", source, output, *SERIAL, "--json")
    first = said.summary
    assert len(said.stdout.splitlines()) == 1, "stdout is for programs"
    assert "10 ok, 1 failed" in said.stderr and "broken.jpg: not an image: plain text" in said.stderr
    assert first["items"]["ok"] == NUM_SCENES + NUM_FRAMES and first["items"]["failed"] == 1
    assert first["left_out"] == {"no image or video ending: .txt": 1}
    assert open_store(output).get(first["record"].removeprefix(f"{first['output']}/"))

    again = visionmill("segment", source, output, *SERIAL, "--json")
    assert again.summary["outcome"] == "nothing_to_do"
    assert "nothing to do: all 6 items are committed already" in again.stderr

    store = open_store(source)
    store.put("scene 0.jpg", scene_jpeg(7))
    changed = segment(source, output)
    assert (changed["plan"], changed["items"]["rows"], changed["items"]["ok"]) == (2, 1, 1)
    scene = "FROM {} WHERE uri LIKE '%/scene 0.jpg'"
    [row] = ask(output, f"SELECT etag, run_id {scene.format('items')}")
    assert row == {"etag": store.info("scene 0.jpg").etag, "run_id": changed["run_id"]}
    assert ask(output, f"SELECT count(*) AS n {scene.format('all_items')}") == [{"n": 2}]
    assert ask(output, f"SELECT DISTINCT etag {scene.format('instances')}") == [{"etag": row["etag"]}]

    retried = segment(source, output, "--retry-failed")
    assert (retried["items"]["rows"], retried["items"]["failed"]) == (1, 1)
    store.put("broken.jpg", scene_jpeg(8))
    mended = segment(source, output)
    assert (mended["items"]["rows"], mended["items"]["ok"]) == (1, 1)
    assert ask(output, "SELECT count(*) AS n FROM failures") == [{"n": 0}]
    assert segment(source, output, "--retry-failed")["outcome"] == "nothing_to_do"
    assert segment(source, output, "--fresh")["items"]["rows"] == NUM_SCENES + NUM_FRAMES + 1
    assert visionmill("verify", output, "--deep", "--json").summary["problems"] == []


def test_other_parameters_are_refused_by_name_and_live_side_by_side_when_asked_for(place: tuple[str, str]) -> None:
    source, output = place
    first = segment(source, output)
    message = refused(1, "segment", source, output, *SERIAL, "--score-threshold", "0.5")
    assert "score_threshold: 0.05 here, 0.5 asked for" in message and "--new-version" in message
    second = segment(source, output, "--score-threshold", "0.5", "--new-version")
    assert second["version"] != first["version"] and second["items"]["rows"] == first["items"]["rows"]
    assert ask(output, "SELECT count(DISTINCT version) AS n FROM all_items") == [{"n": 2}]
    assert ask(output, "SELECT DISTINCT version FROM items") == [{"version": second["version"]}]
    assert ask(output, "SELECT min(score) >= 0.5 AS above FROM instances") == [{"above": True}]


def test_results_are_queried_verified_drawn_and_exported(place: tuple[str, str], tmp_path: Path) -> None:
    source, output = place
    segment(source, output)
    [counted] = ask(output, "SELECT count(*) AS n, count(*) FILTER (mask_area(rle) <> area) AS wrong FROM instances")
    assert counted["n"] > 0 and counted["wrong"] == 0
    verified = visionmill("verify", output, "--json").summary
    assert (verified["num_rows"], verified["problems"], verified["open_shards"]) == (11, [], 0)
    page = visionmill("report", output, "--samples", "2", "--json").summary["report"]
    assert b"broken.jpg" in open_store(page.rpartition("/")[0]).get("index.html")

    everything = ("--min-score", "0", "--json")
    exported = visionmill("export", output, tmp_path / "coco.json", "--to", "coco", *everything).summary
    assert (exported["num_items"], exported["num_instances"], exported["num_skipped"]) == (10, counted["n"], 1)
    coco = COCO(str(tmp_path / "coco.json"))
    assert len(coco.imgs) == 10 and len(coco.anns) == counted["n"]
    assert all(coco.annToMask(ann).sum() == ann["area"] for ann in list(coco.anns.values())[:20])
    visionmill("export", output, tmp_path / "yolo", "--to", "yolo", *everything)
    lines = [line for path in (tmp_path / "yolo").rglob("*.txt") for line in path.read_text().split("\n") if line]
    assert len(lines) == counted["n"]
    flat = visionmill("export", output, f"{output}-flat", "--to", "flat", *everything).summary
    assert flat["num_instances"] == counted["n"]
    assert {info.key.partition("/")[0].partition("=")[0] for info in open_store(f"{output}-flat").list()} == {"name"}
    [sure] = ask(output, "SELECT count(*) AS n FROM instances WHERE score >= 0.5")
    table = visionmill("export", output, tmp_path / "sure.csv", "--to", "csv", "--json").summary
    assert 0 < table["num_instances"] == sure["n"] < counted["n"]
    chosen = visionmill("export", output, tmp_path / "1.csv", "--to", "csv", "--where", "name = '1'", "--json").summary
    [ones] = ask(output, "SELECT count(*) AS n FROM instances WHERE score >= 0.5 AND name = '1'")
    assert chosen["num_instances"] == ones["n"]


def test_report_and_exports_show_what_is_sure_and_rows_keep_everything(tmp_path: Path) -> None:
    output = tmp_path / "out"
    put_scenes(open_store(str(tmp_path / "in")), 3)
    segment(tmp_path / "in", output)
    [rows] = ask(output, "SELECT count(*) AS stored, count(*) FILTER (score >= 0.5) AS sure FROM instances")
    assert 0 < rows["sure"] < rows["stored"]
    for given, shown in ((), rows["sure"]), (("--min-score", "0"), rows["stored"]):
        for kind in ("coco.json", "yolo", "flat"):
            words = (tmp_path / f"{len(given)}-{kind}", "--to", kind.partition(".")[0], *given, "--json")
            assert visionmill("export", output, *words).summary["num_instances"] == shown
        visionmill("report", output, "--samples", "0", *given)
        page = (output / "report" / "index.html").read_text()
        assert f">{shown}<" in page and ("scores from 0.5" in page) == (given == ())
    assert (
        "--min-score"
        in visionmill("export", output, tmp_path / "x", "--to", "coco", "--min-score", "2", exit_code=2).stderr
    )


def test_without_a_model_the_published_one_is_taken_and_its_absence_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: (_ for _ in ()).throw(OSError("no network")))
    put_scenes(open_store(str(tmp_path / "in")), 1)
    said = refused(2, "segment", tmp_path / "in", tmp_path / "out", *SERIAL[: -len(DIGITS)])
    file = tmp_path / "torch" / "hub" / "checkpoints" / "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"
    assert "no network" in said and f"put it at {file}" in said and "digitscape_mask_rcnn" in said
    assert "nuclei, which finds only nucleus" in said and not (tmp_path / "out").exists()


def test_an_unknown_export_format_is_wrong_usage_and_named(tmp_path: Path) -> None:
    put_scenes(open_store(str(tmp_path / "in")), 1)
    segment(tmp_path / "in", tmp_path / "out")
    assert "excel" in refused(2, "export", tmp_path / "out", tmp_path / "x", "--to", "excel")


def test_the_help_of_export_says_what_a_form_is_for_every_product_that_has_it() -> None:
    said = " ".join(visionmill("export", "--help").stdout.replace("│", " ").split())
    for product in products().values():
        for form in product.exporters.values():
            assert all(word in said for word in form.words.split()), form.words
    assert "COCO's keypoint" in said and "COCO's instance" in said


def test_query_prints_rows_on_stdout_and_csv_opens_anywhere(tmp_path: Path) -> None:
    put_scenes(open_store(str(tmp_path / "in")), 2)
    segment(tmp_path / "in", tmp_path / "out")
    said = visionmill("query", tmp_path / "out", "SELECT uri, width FROM items ORDER BY uri", "--format", "csv")
    (tmp_path / "rows.csv").write_text(said.stdout)
    assert duckdb.sql(f"SELECT count(*), max(width) FROM '{tmp_path / 'rows.csv'}'").fetchall() == [(2, 128)]
    lines = visionmill("query", tmp_path / "out", "SELECT uri FROM items", "--format", "json").stdout.splitlines()
    assert [sorted(json.loads(line)) for line in lines] == [["uri"]] * 2
    assert "no_such_column" in refused(2, "query", tmp_path / "out", "SELECT no_such_column FROM items")


@pytest.mark.parametrize(
    ("words", "exit_code", "named"),
    [
        (lambda tmp: ["segment", tmp / "nothing", tmp / "out", *SERIAL], 1, "nothing does not exist"),
        (lambda tmp: ["segment", tmp, tmp / "out", *SERIAL], 1, "holds no image, video or tar"),
        (lambda tmp: ["segment", tmp, "gs://bucket/out", *SERIAL], 2, "output: must be a folder or start with"),
        (lambda tmp: ["segment", tmp, tmp / "out", *SERIAL, "--workers", "lots"], 2, "workers"),
        (lambda tmp: ["segment", tmp, tmp / "out", *SERIAL, "--workers", "3"], 2, "one worker in this process"),
        (lambda tmp: ["segment", tmp, tmp / "out", *SERIAL, "--model", "no-such-model"], 2, "no-such-model"),
        (lambda tmp: ["segment", tmp, tmp / "out", *SERIAL, "--weights", "random:x"], 2, "random:x"),
        (lambda tmp: ["query", tmp / "out", "SELECT 1"], 1, "out"),
        (lambda tmp: ["verify", tmp / "out"], 1, "out"),
        (lambda tmp: ["models", "show", "no-such-model"], 2, "no-such-model"),
        (lambda tmp: ["models", "show", "mask_rccn"], 2, "did you mean mask_rcnn or "),
        (lambda tmp: ["models", "card", "no-such-model"], 2, "no-such-model"),
        (lambda tmp: [*REFUSED, tmp / "x", "--to", "torch"], 2, "has no form of its decoding that does not branch"),
        (lambda tmp: [*EXPORT, tmp / "x", "--to", "torch", "--size", "wide"], 2, "--size must be HxW"),
        (lambda tmp: [*EXPORT, tmp / "x", "--to", "caffe"], 2, "no form 'caffe': onnx, torch"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_the_right_exit_code(
    tmp_path: Path, words: Callable[[Path], list[str | Path]], exit_code: int, named: str
) -> None:
    (tmp_path / "in").mkdir()
    assert named in refused(exit_code, *words(tmp_path))


def test_a_model_card_is_printed_as_it_is_written_to_a_file(tmp_path: Path) -> None:
    printed = visionmill("models", "card", DIGITS[1]).stdout
    assert printed.startswith("---\nlicense: ") and f"# {DIGITS[1]}" in printed
    written = visionmill("models", "card", DIGITS[1], tmp_path / "README.md", "--json").summary
    assert Path(written["path"]).read_text("utf-8") == written["card"] == printed


def test_unknown_options_and_missing_arguments_are_wrong_usage() -> None:
    assert "Missing argument" in visionmill("segment", "only-a-source", exit_code=2).stderr
    assert "No such option" in visionmill("segment", "a", "b", "--no-such-option", exit_code=2).stderr


def test_a_second_driver_is_refused_while_the_first_lives_and_follows_at_once_when_it_was_killed(
    store_uri: str,
) -> None:
    source, output = f"{store_uri}/in", f"{store_uri}/out"
    put_scenes(open_store(source), 24)
    first = start("segment", source, output, *SERIAL, "--shard-items", "4", "--json")
    wait_for_a_shard(first, output)
    message = refused(1, "segment", source, output, *SERIAL, "--shard-items", "3")
    assert "another driver holds the lease" in message and f"pid {first.pid}" in message
    first.kill()
    first.communicate()
    second = segment(source, output)
    assert second["plan_joined"] and second["shards"]["committed_before"] >= 1
    assert (second["items"]["rows"], second["items"]["ok"]) == (24, 24)
    [counts] = ask(output, "SELECT count(*) AS rows, count(DISTINCT uri) AS uris FROM all_items")
    assert counts == {"rows": 24, "uris": 24}
    assert visionmill("verify", output, "--json").summary["problems"] == []


def test_a_lease_that_is_held_elsewhere_names_its_holder(tmp_path: Path) -> None:
    put_scenes(open_store(str(tmp_path / "in")), 1)
    with hold_lease(open_store(str(tmp_path / "out")), "run-of-somebody-else"):
        assert "run-of-somebody-else" in refused(1, "segment", tmp_path / "in", tmp_path / "out", *SERIAL)
    assert segment(tmp_path / "in", tmp_path / "out")["items"]["ok"] == 1
