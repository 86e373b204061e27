"""What a new user types first: what is said before anything is done, and what is said when the words are wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from infra.errors import UsageError
from infra.settings import settings
from infra.store import open_store
from tasks.product import find_product, register, temporary_registrations
from tests.flows.command import DIGITS, ROOT, SERIAL, ask, refused, segment, visionmill
from tests.flows.scenes import put_scenes, write_scenes
from tests.videos import make_video


def test_the_version_is_told_and_shells_complete_commands() -> None:
    assert visionmill("--version").stdout.startswith("visionmill 0.")
    words = {"_VISIONMILL_COMPLETE": "complete_bash", "COMP_WORDS": "visionmill ver", "COMP_CWORD": "1"}
    program = "import sys; sys.argv = ['visionmill']; from flows.cli import main; main()"
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, cwd=ROOT, env=os.environ | words, capture_output=True, text=True, timeout=60)
    assert said.stdout.split() == ["verify"]


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(store_uri: str) -> None:
    source, output = f"{store_uri}/in", f"{store_uri}/out"
    put_scenes(open_store(source), 3)
    open_store(source).put("clip.mp4", make_video("mp4", "libx264", frames=6))
    open_store(source).put("broken.jpg", b"no picture")
    before = {info.key for info in open_store(store_uri).list()}
    said = visionmill("segment", source, output, *SERIAL, "--shard-items", "4", "--dry-run", "--json")
    foreseen = said.summary
    assert {info.key for info in open_store(store_uri).list()} == before
    assert (foreseen["items"], foreseen["objects"], foreseen["videos"]) == ({"to_do": 10}, 5, 1)
    assert foreseen["bytes"] == sum(info.size_bytes for info in open_store(source).list())
    assert foreseen["seconds_per_item"] > 0 and foreseen["estimated_seconds"] > 0 and foreseen["shards"] >= 2
    assert "would segment 10 items of 5 objects" in said.stderr and "nothing was written" in said.stderr
    done = segment(source, output, "--shard-items", "4")
    assert (done["shards"]["planned"], done["version"]) == (foreseen["shards"], foreseen["version"])
    assert segment(source, output, "--dry-run")["outcome"] == "nothing_to_do"


def test_a_dry_run_counts_the_frames_that_it_tried_and_none_that_a_short_video_lacks(tmp_path: Path) -> None:
    put_scenes(open_store(str(tmp_path / "in")), 1)
    open_store(str(tmp_path / "in")).put("video.avi", make_video("avi", "mpeg4", frames=6))
    foreseen = segment(tmp_path / "in", tmp_path / "out", "--dry-run")
    assert (foreseen["items"], foreseen["measured_items"]) == ({"to_do": 7}, 6), "the first goes ahead uncounted"


def test_a_limit_takes_so_many_objects_and_later_runs_take_the_others(tmp_path: Path) -> None:
    write_scenes(tmp_path / "in", 5)
    output = tmp_path / "out"
    assert segment(tmp_path / "in", output, "--limit", "2")["items"]["rows"] == 2
    assert segment(tmp_path / "in", output, "--limit", "2")["items"]["rows"] == 2
    assert segment(tmp_path / "in", output)["items"]["rows"] == 1
    assert ask(output, "SELECT count(*) AS n FROM all_items") == [{"n": 5}]
    assert "--limit: must be at least 1" in refused(2, "segment", tmp_path / "in", output, *SERIAL, "--limit", "0")


def test_what_is_wrong_with_a_place_is_said_of_the_place(tmp_path: Path) -> None:
    said = refused(1, "train", tmp_path / "nosuch", tmp_path / "t", "--no-prefect")
    assert "nosuch does not exist" in said
    visionmill("digitscape", tmp_path / "scenes", "--scenes", "1")
    said = refused(1, "evaluate", DIGITS[1], tmp_path / "scenes")
    assert "a folder without masks/" in said and f"did you mean {tmp_path}/scenes/annotations.json" in said
    for command in ("promote", "rollback"):
        assert "nosuch does not exist" in refused(2, command, tmp_path / "nosuch")
        assert "holds no model that was judged" in refused(2, command, tmp_path / "scenes")


def test_a_wrong_variable_is_named_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONMILL_STORE_ATTEMPTS", "many")
    with pytest.raises(UsageError) as caught:
        settings()
    assert caught.value.message == "VISIONMILL_STORE_ATTEMPTS: must be a whole number, got 'many'"


def test_help_knows_the_products_that_were_registered_late() -> None:
    with temporary_registrations():
        known = find_product("segments")
        forms = {"sketch": replace(known.exporters["coco"], words="a sketch of it")}
        register(replace(known, name="drawings", verb="draw", views={"strokes": "SELECT 1"}, exporters=forms))
        assert "strokes" in visionmill("query", "--help").stdout
        assert "sketch" in visionmill("export", "--help").stdout
    assert "strokes" not in visionmill("query", "--help").stdout
