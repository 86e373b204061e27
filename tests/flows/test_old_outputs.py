"""Outputs of the version of November 2026 (``tests/fixtures/outputs_2026_11``) are read, continued, or plainly refused.

They were written to a bucket, where neither the name of an item nor its etag depends on a machine. Every figure below
was recorded with the code that wrote them; what is computed anew may differ in its last digits.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from typer.testing import CliRunner

from flows.cli.app import make_app
from infra.seaweedfs import S3Endpoint
from infra.store import open_store
from tests.flows.command import ask, segment, visionmill
from tests.flows.scenes import scene_jpeg

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "outputs_2026_11" / "outputs.tar.xz"
ROOT = "s3://tests/old-outputs"
SOURCE, JOB, TRAINING = f"{ROOT}/job/in", f"{ROOT}/job/out", f"{ROOT}/training"
DETECTOR = f"{TRAINING}/out/training/runs/4d1b6af6a6a60057/tiny.safetensors"
INSTANCE_TEACHER = f"{ROOT}/instance/inference/19e694e44568e2ab-5a4372d5"
SEMANTIC_TEACHER = f"{ROOT}/semantic/inference/6665d924feec7654-d9ac9fc7"
VERSION = "131c89b41b2501c5"
LABELLED, TRUTH_OF_U = f"{ROOT}/labelled/annotations.json", f"{ROOT}/unlabelled/annotations.json"
HERE = ("--ray", "none", "--no-prefect")
OUTCOME = "SELECT status, media, count(*) AS n, sum(len(labels))::INT AS found FROM items GROUP BY ALL ORDER BY ALL"
BY_CLASS = (
    "SELECT name, count(*) AS n, sum(area)::INT AS area, round(sum(score), 4) AS score FROM instances "
    "GROUP BY name ORDER BY name"
)
CLASSES = {
    "0": (25, 8540, 8.9421), "1": (35, 8634, 7.1189), "2": (12, 2513, 1.9438), "3": (5, 1016, 1.5718),
    "4": (10, 3843, 2.7554), "5": (4, 979, 0.832), "6": (18, 8146, 7.7603), "7": (11, 3412, 4.0507),
    "8": (20, 5259, 5.4761), "9": (16, 4562, 5.0401),
}  # fmt: skip


@pytest.fixture(scope="module")
def archive() -> dict[str, bytes]:
    """All files by name."""
    with tarfile.open(ARCHIVE) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


@pytest.fixture
def old(
    archive: dict[str, bytes], s3_server: S3Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, bytes]:
    """The files, as they were, at the place where they were written."""
    monkeypatch.setenv("VISIONMILL_CACHE_DIR", str(tmp_path / "cache"))
    store = open_store(ROOT)
    for info in store.list():
        if info.key not in archive:
            store.delete(info.key)
    for name, data in archive.items():
        store.put(name, data)
    return archive


def by_class(output: str | Path) -> dict[str, tuple[Any, ...]]:
    """Instances, mask pixels and sum of scores by class name."""
    return {row["name"]: (row["n"], row["area"], row["score"]) for row in ask(str(output), BY_CLASS)}


def digest(folder: Path, pattern: str) -> str:
    """The first digits of a SHA-256 over names and bytes of the files of a folder."""
    found = sorted(path for path in folder.rglob(pattern))
    content = b"".join(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() for path in found)
    return hashlib.sha256(content).hexdigest()[:12]


def without_origin(text: str) -> str:
    """COCO JSON without what an export says since then of its origin: that a model made it, and which."""
    return re.sub(r',\s*"source": "model"(,\s*"model": "[^"]*")?', "", text)


@pytest.mark.s3
@pytest.mark.usefixtures("old")
def test_a_job_answers_queries_as_it_did() -> None:
    assert ask(JOB, OUTCOME) == [
        {"status": "failed", "media": "image", "n": 1, "found": None},
        {"status": "ok", "media": "image", "n": 6, "found": 75},
        {"status": "ok", "media": "video", "n": 5, "found": 81},
    ]
    assert by_class(JOB) == CLASSES
    assert ask(JOB, "SELECT uri, stage, error_type, error FROM failures") == [
        {
            "uri": f"{SOURCE}/broken.jpg",
            "stage": "decode",
            "error_type": "NotAnImage",
            "error": "not an image: plain text",
        }
    ]
    assert ask(
        JOB, "SELECT count(*) AS n, count(DISTINCT uri) AS uris, count(DISTINCT run_id) AS runs FROM all_items"
    ) == [{"n": 13, "uris": 8, "runs": 2}], "the row of the picture that was replaced is kept, and counts no more"
    [masks] = ask(JOB, "SELECT sum(mask_area(rle))::INT AS decoded, sum(area)::INT AS stored FROM instances")
    assert masks == {"decoded": 46904, "stored": 46904}
    places = ask(JOB, "SELECT uri, frame, round(pts_s, 4) AS pts_s FROM items WHERE uri LIKE '%clip%' ORDER BY frame")
    assert [(row["frame"], row["pts_s"]) for row in places] == [(0, 0), (2, 0.1667), (4, 0.3333), (6, 0.5), (8, 0.6667)]
    assert len(ask(JOB, f"SELECT uri FROM items WHERE uri = '{SOURCE}/shard.tar!/scene 4.jpg'")) == 1


@pytest.mark.s3
@pytest.mark.usefixtures("old")
def test_jobs_of_a_loop_answer_queries_as_they_did() -> None:
    assert by_class(INSTANCE_TEACHER) == {"disc": (12, 3891, 11.8951), "square": (10, 3364, 8.5622)}
    [measured] = ask(
        INSTANCE_TEACHER, "SELECT round(avg(q_stability), 4) AS s, round(avg(q_tta), 4) AS t FROM instances"
    )
    assert measured == {"s": 0.8859, "t": 0.8565}
    assert by_class(SEMANTIC_TEACHER) == {
        "background": (110, 33988, 72.25),
        "disc": (126, 3742, 95.78),
        "square": (65, 3230, 42.425),
    }
    for output in (INSTANCE_TEACHER, SEMANTIC_TEACHER):
        found = visionmill("verify", output, "--deep", "--json").summary
        assert (found["num_rows"], found["num_shards"], found["problems"]) == (10, 1, [])


@pytest.mark.s3
@pytest.mark.usefixtures("old")
def test_a_job_is_exported_verified_and_reported_as_it_was(tmp_path: Path) -> None:
    found = visionmill("verify", JOB, "--deep", "--json").summary
    assert (found["num_rows"], found["num_shards"], found["open_shards"], found["problems"]) == (13, 4, 0, [])
    for kind, place in (("coco", "coco/all.json"), ("yolo", "yolo"), ("flat", "flat")):
        written = visionmill("export", JOB, tmp_path / place, "--to", kind, "--min-score", "0", "--json").summary
        assert (written["num_items"], written["num_instances"], written["num_skipped"]) == (11, 156, 1), kind
    (exported,) = (tmp_path / "coco").glob("*.json")
    exported.write_text(without_origin(exported.read_text()))
    assert digest(tmp_path / "coco", "*.json") == "e7416158e771"
    lines = [line for path in (tmp_path / "yolo").rglob("*.txt") for line in path.read_text().splitlines()]
    assert len(lines) == 156, "a line for each object; outlines are drawn more exactly than then"
    flat = ds.dataset(tmp_path / "flat", partitioning="hive", exclude_invalid_files=True).to_table()
    assert (flat.num_rows, sum(flat["area"].to_pylist()), len(set(flat["label"].to_pylist()))) == (156, 46904, 10)

    assert visionmill("report", JOB, "--min-score", "0", "--json").summary["report"] == f"{JOB}/report/index.html"
    page = open_store(JOB).get("report/index.html").decode()
    words = " ".join(re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL).split())
    assert "Items 12 7 images, 5 frames of 1 video Instances 156 14.2 per item, 0 items without Failed 1" in words
    assert "Instances by class 1: 35 1 35 0: 25 0 25 8: 20 8 20 6: 18" in words
    assert "decode NotAnImage 1" in words
    assert page.count("data:image/") >= 10, "the pictures are found and drawn"


def test_a_job_that_was_copied_to_a_folder_answers_the_same(archive: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in archive.items():
        if name.startswith("job/out/"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    assert by_class(tmp_path / "job" / "out") == CLASSES
    found = visionmill("verify", tmp_path / "job" / "out", "--deep", "--json").summary
    assert (found["num_rows"], found["num_shards"], found["problems"]) == (13, 4, [])


@pytest.mark.s3
@pytest.mark.usefixtures("old")
def test_a_job_finds_nothing_to_do_and_then_does_exactly_what_is_new() -> None:
    options = ("--frame-stride", "2", "--shard-items", "4")
    again = segment(SOURCE, JOB, *options)
    assert (again["outcome"], again["version"]) == ("nothing_to_do", VERSION)
    open_store(SOURCE).put("scene 9.jpg", scene_jpeg(9))
    more = segment(SOURCE, JOB, *options)
    assert (more["outcome"], more["version"], more["plan"]) == ("done", VERSION, 3)
    assert (more["items"]["ok"], more["items"]["failed"], more["shards"]["planned"]) == (1, 0, 1)
    fresh = ask(JOB, f"SELECT uri FROM items WHERE run_id = '{more['run_id']}'")
    assert fresh == [{"uri": f"{SOURCE}/scene 9.jpg"}]
    assert visionmill("verify", JOB, "--json").summary["num_rows"] == 14
    retried = segment(SOURCE, JOB, *options, "--retry-failed")
    assert (retried["items"]["ok"], retried["items"]["failed"]) == (0, 1), "the one that was broken, and no other"


@pytest.mark.s3
@pytest.mark.usefixtures("old")
def test_trained_weights_are_judged_as_they_were() -> None:
    metrics = visionmill("evaluate", DETECTOR, TRUTH_OF_U, "--json").summary["metrics"]
    assert (metrics["task"], metrics["images"], metrics["objects"]) == ("instance", 10, 21)
    assert metrics["mask"]["ap"] == pytest.approx(0.7706, abs=0.01)
    assert metrics["box"]["ap"] == pytest.approx(0.7385, abs=0.01)
    assert metrics["mask"]["by_class"] == pytest.approx({"disc": 0.7804, "square": 0.7609}, abs=0.01)


def train(recipe: str, steps: int) -> dict[str, Any]:
    """The command that the fixture's README has."""
    words = ("train", LABELLED, f"{TRAINING}/out", "--recipe", f"{TRAINING}/{recipe}", "--steps", str(steps))
    return visionmill(*words, *HERE, "--json").summary


@pytest.mark.s3
def test_a_training_that_is_done_is_left_alone_and_one_that_was_stopped_goes_on(old: dict[str, bytes]) -> None:
    done = train("detector.json", 600)
    assert (done["weights"], done["fingerprint"], done["steps"]) == (DETECTOR, "4d1b6af6a6a60057", 600)
    assert done["model"] == "tiny@75b203b051fc"
    run = "out/training/runs/3aa0931577be332b"
    assert f"training/{run}/checkpoint.safetensors" in old
    resumed = train("unet.json", 60)
    assert (resumed["weights"], resumed["steps"]) == (f"{TRAINING}/{run}/tiny.safetensors", 60)
    store = open_store(TRAINING)
    assert not [info for info in store.list(run) if "checkpoint" in info.key]
    history = json.loads(store.get(f"{run}/tiny.json"))["lineage"]["history"]
    assert [point["step"] for point in history] == list(range(1, 61)), "the first 40 came with the checkpoint"


def goes_on_or_is_refused(output: str, *words: str) -> dict[str, Any] | None:
    """The summary of a command that works on an old output, or None where it was refused as it should be.

    A refusal names the schema or version that it cannot work with, says what to do, and has left the output as it was.
    """
    store = open_store(output)
    before = {info.key: info.etag for info in store.list() if not info.key.endswith("_lease.json")}
    answer = CliRunner().invoke(make_app(), [*words, "--json"])
    assert "Traceback" not in answer.stderr, answer.stderr
    summary: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    if answer.exit_code == 0:
        return summary
    assert answer.exit_code in (1, 2)
    assert re.search(r"schema|version|\.v\d", summary["error"]), summary
    assert re.search(r"output|visionmill", summary["hint"]), summary
    after = {info.key: info.etag for info in store.list() if not info.key.endswith("_lease.json")}
    assert after == before, "what is refused is not touched"
    return None


LOOPS = {
    "instance": ("--recipe", f"{TRAINING}/detector.json", "--from", DETECTOR, "--tta", "hflip"),
    "semantic": ("--recipe", f"{TRAINING}/unet.json", "--precision", "0.5"),
}
CHAMPIONS = {"instance": "teacher@19e694e44568", "semantic": "student@a523bb629971"}


def another_loop(kind: str, **shares: float) -> dict[str, Any] | None:
    """A round of few steps on an old output, else as the fixture's README has it."""
    data = ("--labelled", LABELLED, "--unlabelled", f"{ROOT}/unlabelled/images", "--audit", TRUTH_OF_U)
    given = [word for name, share in shares.items() for word in ("--share", f"{name}={share}")]
    words = (
        "retrain",
        *data,
        "--task",
        kind,
        "--output",
        f"{ROOT}/{kind}",
        *given,
        *LOOPS[kind],
        "--steps",
        "5",
        *HERE,
    )
    return goes_on_or_is_refused(f"{ROOT}/{kind}", *words)


@pytest.mark.s3
@pytest.mark.usefixtures("old")
def test_another_loop_of_an_old_output_begins_with_its_champion_and_counts_the_looks_of_both() -> None:
    summary = another_loop("instance", L=0.3, C=0.4, G=0.2, T=0.1)
    if summary is None:
        return
    [outcome] = summary["rounds"]
    assert outcome["teacher"] == CHAMPIONS["instance"]
    assert outcome["accepted"] == {"disc": 11, "square": 7}, "the same teacher, thresholds and candidates"
    listed = visionmill("promote", f"{ROOT}/instance", "--list", "--json").summary
    [mine] = [each for each in listed["candidates"] if each["verdict_id"] == outcome["gate"]["verdict_id"]]
    assert {each["name"]: each["value"] for each in mine["criteria"]}["looks at the gate set"] == 2
    assert len(listed["candidates"]) == 3


@pytest.mark.s3
@pytest.mark.usefixtures("old")
def test_another_loop_of_an_old_output_divides_its_labels_as_before_whatever_shares_are_asked_for() -> None:
    summary = another_loop("semantic", L=0.6, C=0.3, G=0.1)
    if summary is None:
        return
    assert sorted(summary["splits"].values()) == [6, 10, 12, 18, 24]
    assert summary["rounds"][0]["teacher"] == CHAMPIONS["semantic"]


@pytest.mark.s3
@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("kind", LOOPS)
def test_the_champion_of_an_old_loop_is_shown_reported_and_moved(kind: str) -> None:
    output = f"{ROOT}/{kind}"
    listed = visionmill("promote", output, "--list", "--json").summary
    assert listed["champion"]["model_id"] == CHAMPIONS[kind]
    states = {each["model"]["model_id"]: each["state"] for each in listed["candidates"]}
    if kind == "instance":
        assert states == {"teacher@19e694e44568": "promoted", "student@5ff6ed389c6e": "refused"}
    else:
        assert states == {"teacher@6665d924feec": "promoted", "student@a523bb629971": "promoted"}
        back = visionmill("rollback", output, "--reason", "a test", "--approver", "ada", "--json").summary
        assert back["champion"]["model_id"] == "teacher@6665d924feec"
    if goes_on_or_is_refused(output, "report", output) is not None:
        pages = [info.key for info in open_store(output).list("report/rounds/")]
        assert len(pages) == 1
        words = re.sub(r"<[^>]*>", " ", open_store(output).get(pages[0]).decode())
        assert {"instance": "0.802", "semantic": "0.982"}[kind] in words, "what the candidate reached on the gate set"
