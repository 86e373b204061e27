"""Models with a memory: a clip in pieces, in any order of events, gives the rows of the clip in one piece."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import modelkit
from infra.errors import StoreError
from infra.retry import RetryPolicy
from infra.store import open_store
from modelkit.registry import register_model, temporary_registrations
from modelkit.video import VideoState
from tasks.engine.calibrate import choose_for_run
from tasks.engine.clips import Handover, runs_of
from tasks.engine.dispatch import DispatchPolicy
from tasks.engine.hangs import HangLimits
from tasks.engine.job import Assignment
from tasks.engine.pool import PoolSettings, run_serial
from tasks.engine.prepare import describe_model, prepare_job
from tasks.engine.worker import Worker
from tasks.ingest import sharding
from tasks.ingest.inventory import take_inventory
from tasks.ingest.plan import Plan, PlanOptions, open_plan
from tasks.output.commit import commit_shard
from tasks.output.encoding import encode_part
from tasks.output.layout import STATES_FOLDER, state_key
from tasks.products.segments import PRODUCT
from tasks.products.segments.parameters import SegmentParameters
from tasks.records import Entry, Shard
from tests.tasks.engine.fakes import version, write_image
from tests.tasks.engine.test_pool_serial import ListPlan, quick
from tests.tasks.engine.test_worker import rows_in
from tests.tasks.engine.video_fakes import SquareTracker, make, picture, video_job, write_clip

FRAMES = 40
# The encoder's keyframes are 12 frames apart, so a wish of n frames cuts at multiples of 12.
CUTS = {8: [0, 12, 24], 13: [0, 24]}


def write_source(folder: Path, acts: dict[int, str] | None = None) -> Path:
    """Two clips that differ and a few images; ``acts`` happen in the first clip."""
    write_clip(folder, 0, FRAMES, acts)
    write_clip(folder, 1, FRAMES)
    for index in range(3):
        write_image(folder, index, size_hw=(24, 32))
    return folder


def plan_of(source: Path, output: Path, video_frames: int = 1000) -> Plan:
    output.mkdir(parents=True, exist_ok=True)
    inventory = take_inventory(str(source), folder=output.parent)
    plan = open_plan(open_store(str(output)), version(), inventory, PlanOptions(video_frames=video_frames))
    assert plan is not None
    return plan


def found_in(output: Path) -> list[dict[str, Any]]:
    """The sorted rows, without the one thing that a cut may change: which shard holds them."""
    return [{name: value for name, value in row.items() if name != "shard_id"} for row in rows_in(output)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of a run that cuts nothing and that nobody disturbs."""
    output = tmp_path_factory.mktemp("whole") / "out"
    plan = plan_of(source, output)
    assert [entry.end_frame for shard in plan.shards() for entry in shard.entries] == [None] * 5
    assert run_serial(plan, video_job(output), settings=quick()).finished
    return found_in(output)


def test_a_track_keeps_its_id_and_what_comes_back_is_a_new_one(whole: list[dict[str, Any]]) -> None:
    clip = [row for row in whole if row["uri"].endswith("clip0.mkv")]
    assert [row["frame"] for row in clip] == list(range(FRAMES))
    seen: list[int] = []
    for before, after in pairwise(clip):
        kept = {(label, track) for label, track in zip(before["labels"], before["track_ids"], strict=True)}
        for label, track in zip(after["labels"], after["track_ids"], strict=True):
            if label in before["labels"]:
                assert (label, track) in kept
            else:
                assert track not in seen
        seen += [track for track in after["track_ids"] if track is not None]
    assert max(seen) > 12
    assert all(row["track_ids"][-1] is None and not row["is_thing"][-1] for row in clip), "stuff has no identity"


@pytest.mark.parametrize("video_frames", CUTS)
def test_a_clip_in_shards_gives_the_rows_of_the_clip_in_one_piece(
    source: Path, whole: list[dict[str, Any]], tmp_path: Path, video_frames: int
) -> None:
    plan = plan_of(source, tmp_path / "out", video_frames)
    cuts = [entry.first_frame for shard in plan.shards() for entry in shard.entries if entry.uri.endswith("clip0.mkv")]
    assert cuts == CUTS[video_frames]
    outcome = run_serial(plan, video_job(plan.store.uri), settings=quick())
    assert outcome.finished
    assert found_in(tmp_path / "out") == whole
    assert not list(plan.store.list(STATES_FOLDER)), "states are gone once nobody needs them"


def test_pieces_in_one_shard_go_through_in_order_however_many_threads_decode(
    source: Path, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    pieces = [entry for shard in plan_of(source, tmp_path / "cut", 8).shards() for entry in shard.entries]
    worker = Worker(video_job(tmp_path / "out", fetch_threads=4, decode_threads=4), own_process=False)
    worker.process(Assignment(Shard("s1", 1, 0, tuple(pieces), 1.0), "attempt-0000000001"))
    worker.close()
    assert found_in(tmp_path / "out") == whole


@pytest.mark.parametrize("memory_bytes", [20_000, 512 << 20])
def test_two_shards_in_flight_do_not_mix_their_clips(
    source: Path, whole: list[dict[str, Any]], tmp_path: Path, memory_bytes: int
) -> None:
    entries = [entry for shard in plan_of(source, tmp_path / "plan").shards() for entry in shard.entries]
    clips = [Shard(f"s{n}", 1, n, (entry,), 1.0) for n, entry in enumerate(entries)]
    worker = Worker(video_job(tmp_path / "out", batch_size=4, memory_bytes=memory_bytes), own_process=False)
    threads = [
        threading.Thread(target=worker.process, args=(Assignment(clip, f"attempt-000000000{clip.index}"),))
        for clip in clips
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.close()
    assert found_in(tmp_path / "out") == whole


class FirstShards(ListPlan):
    """The first shards of a plan that has more: a run over them leaves the plan open."""

    def __init__(self, plan: Plan, count: int) -> None:
        super().__init__(Path(plan.store.uri), list(plan.shards())[:count])
        self.total = plan.num_shards

    @property
    def num_shards(self) -> int:
        return self.total


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_a_run_that_stops_anywhere_goes_on_with_the_state_it_left(
    source: Path, whole: list[dict[str, Any]], tmp_path: Path, stop_after: int, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(source, tmp_path / "out", 8)
    job = video_job(plan.store.uri)
    first = run_serial(FirstShards(plan, stop_after), job, settings=quick())
    assert (first.finished, first.shards_committed) == (False, stop_after)
    assert len(list(plan.store.list(STATES_FOLDER))) <= 1, "of a clip only the newest state is kept"
    assert run_serial(plan, job, settings=quick()).finished
    assert found_in(tmp_path / "out") == whole
    assert "is lost" not in caplog.text


def test_a_lost_state_is_computed_again(
    source: Path, whole: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(source, tmp_path / "out", 8)
    job = video_job(plan.store.uri)
    run_serial(FirstShards(plan, 2), job, settings=quick())
    (left,) = plan.store.list(STATES_FOLDER)
    plan.store.delete(left.key)
    assert run_serial(plan, job, settings=quick()).finished
    assert found_in(tmp_path / "out") == whole
    assert "the state before frame 24" in caplog.text


def test_a_frame_that_fails_leaves_the_state_as_if_it_had_not_been_there(tmp_path: Path) -> None:
    write_clip(tmp_path / "in", 0, FRAMES, dict.fromkeys((7, 13, 30), "raise in infer"))
    rows = {}
    for video_frames in (1000, 8):
        plan = plan_of(tmp_path / "in", tmp_path / f"out{video_frames}", video_frames)
        assert run_serial(plan, video_job(plan.store.uri), settings=quick()).failed == 3
        rows[video_frames] = found_in(Path(plan.store.uri))
    assert rows[8] == rows[1000]
    good = [frame for frame in range(FRAMES) if frame not in (7, 13, 30)]
    model = make(video_job(tmp_path / "out"))
    state = model.start()
    for row in (rows[8][frame] for frame in good):
        found, state = model.step(model.prepare(picture(0, row["frame"])), state)
        expected = model.finish(found)
        assert row["scores"] == [pytest.approx(score, abs=0) for score in expected.scores.tolist()]
        assert [-1 if track is None else track for track in row["track_ids"]] == expected.track_ids.tolist()
    assert [(row["frame"], row["error"]) for row in rows[8] if row["status"] != "ok"] == [
        (frame, "told to raise in infer") for frame in (7, 13, 30)
    ]


def test_a_frame_that_hangs_is_found_and_costs_no_id_of_the_others(tmp_path: Path) -> None:
    """The rows around it are those of a run in which the same frame fails in a harmless way, uncut."""
    impatient = PoolSettings(
        policy=DispatchPolicy(backoff=RetryPolicy(first_delay_s=0.02)), hangs=HangLimits(quiet_s=1.5)
    )
    rows = {}
    for name, video_frames, settings in (("hang in infer", 4, impatient), ("raise in infer", 1000, quick())):
        write_clip(tmp_path / name, 0, FRAMES, {17: name})
        plan = plan_of(tmp_path / name, tmp_path / f"out-{name}", video_frames)
        assert run_serial(plan, video_job(plan.store.uri), settings=settings).finished
        rows[name] = found_in(Path(plan.store.uri))
    hung, raised = rows.values()
    assert (hung[17]["status"], hung[17]["error_type"]) == ("quarantined", "WorkerHang")
    differing = {"uri", "etag", "status", "error", "error_type"}
    for ours, theirs in zip(hung, raised, strict=True):
        assert {k: v for k, v in ours.items() if k not in differing} == {
            k: v for k, v in theirs.items() if k not in differing
        }


def test_of_two_attempts_the_committed_one_decides_which_state_counts(store_uri: str) -> None:
    store = open_store(store_uri)
    store.probe()
    handover = Handover(store, version())
    assert handover.take("s1") is None
    for attempt, value in (("attempt-000000001", 1.0), ("attempt-000000002", 2.0)):
        handover.leave("s1", attempt, VideoState(3, {"x": torch.full((2, 2), value)}, {"next_id": 5}))
    assert handover.take("s1") is None, "nobody has committed"
    data = encode_part(
        [], version=version(), plan=1, shard_id="s1", attempt_id="attempt-000000002", run_id="r", class_names={}
    )
    assert commit_shard(store, version(), "s1", data, "attempt-000000002") == "committed"
    state = handover.take("s1")
    assert state is not None
    assert (state.frame, state.counters, state.tensors["x"].unique().tolist()) == (3, {"next_id": 5}, [2.0])
    store.put(state_key(version(), "s1", "attempt-000000002"), b"damaged")
    with pytest.raises(StoreError, match="no state of a clip"):
        handover.take("s1")
    handover.forget("s1")
    assert not list(store.list(STATES_FOLDER))


def test_a_registered_video_model_is_run_with_its_memory_and_eagerly(source: Path, tmp_path: Path) -> None:
    with temporary_registrations():
        register_model("square_tracker", architecture="SquareTracker", kind="panoptic")(SquareTracker)
        rows = {}
        for video_frames in (1000, 8):
            asked = SegmentParameters(
                source=str(source), output=str(tmp_path / f"out{video_frames}"), model="square_tracker",
                weights="random:0", frame_stride=3, score_threshold=0.0, memory_bytes=64 << 20,
            )  # fmt: skip
            prepared = prepare_job(PRODUCT, asked, run_id="r", device="cpu")
            assert prepared.job.carries_state
            inventory = take_inventory(str(source), folder=tmp_path)
            plan = open_plan(prepared.output, prepared.version, inventory, PlanOptions(video_frames=video_frames))
            assert plan is not None
            decision = choose_for_run(plan, prepared.job, "on", workers=1, session=None, num_gpus=0.0)
            assert (decision["mode"], "memory" in decision["reason"]) == ("eager", True)
            assert run_serial(plan, replace(prepared.job, execution=decision), settings=quick()).ok == 2 * 14 + 3
            rows[video_frames] = found_in(Path(prepared.output.uri))
    assert rows[8] == rows[1000]
    assert len({track for row in rows[8] for track in row["track_ids"] if row["media"] == "video"}) > 5
    not_a_video = describe_model("digitscape_mask_rcnn", None)
    assert not modelkit.is_video_model(not_a_video)


def test_a_shard_says_which_one_it_continues_whatever_is_skipped(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "ROW_GROUP_ROWS", 1)  # every shard a row group: neighbours lie in two of them
    plan = plan_of(source, tmp_path / "out", 8)
    shards = list(plan.shards())
    assert any(shard.continues for shard in shards)
    for before, shard in pairwise([None, *shards]):
        goes_on = shard is not None and shard.entries[0].first_frame > 0
        assert shard is not None
        assert shard.continues == (before.shard_id if before is not None and goes_on else None)
        assert [one for one in plan.shards(skip={shard.shard_id})] == [one for one in shards if one is not shard]


def test_runs_hold_the_pieces_of_one_clip_without_a_gap() -> None:
    def piece(uri: str, first: int, end: int | None) -> Entry:
        return Entry(uri, "e", 1, "video", first_frame=first, end_frame=end)

    image = Entry("i.png", "e", 1, "image")
    entries = [image, piece("a", 0, 5), piece("a", 5, 9), piece("b", 0, None), image, image, piece("c", 4, 8)]
    entries += [piece("c", 12, None)]
    runs = runs_of(list(enumerate(entries)))
    assert [[index for index, _ in run] for run in runs] == [[0], [1, 2], [3], [4], [5], [6], [7]]
    assert runs_of([]) == []
