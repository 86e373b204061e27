from __future__ import annotations

import html
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from infra.errors import UsageError
from infra.store import open_store
from tasks.output.layout import version_to_json
from tasks.output.runs import RunRecord, write_run
from tasks.output.views import Views, views_of
from tasks.products.segments import panels
from tasks.report.panels import panels_of
from tasks.report.report import write_report
from tasks.report.report_data import collect
from tasks.report.report_samples import Gallery, Sample
from tasks.report.report_samples import choose_and_load as choose_and_load_with
from tests.tasks.output.fake_output import FakeOutput, Item, with_sources

EVIL = "<script>alert(1)</script>.jpg"


def choose_and_load(views: Views, samples: int, *, budget_s: float = 60.0) -> tuple[Gallery, ...]:
    return choose_and_load_with(views, panels_of(views), samples, budget_s=budget_s)


def record_of(output: FakeOutput) -> RunRecord:
    return RunRecord(
        run_id="20261121T120000Z-abcdef",
        product="segments",
        source="pictures",
        output=output.store.uri,
        version=version_to_json(output.version),
        plan=1,
        plan_joined=False,
        started_at="2026-11-21T12:00:00.000+00:00",
        finished_at="2026-11-21T12:01:00.000+00:00",
        seconds=60.2,
        outcome="done",
        exit_code=0,
        items={"ok": 20, "failed": 3, "quarantined": 1},
        pool={"workers_started": 2},
        execution={"mode": "eager", "reason": "nothing to repay"},
        weights={
            "architecture": "two_stage_detector",
            "licence": "MIT-0",
            "digest": "ab" * 32,
            "metrics": {"test": {"mask_ap50": 0.9123}},
            "classes": [{"id": n, "name": str(n), "is_thing": True} for n in range(4)],
        },
        items_per_s=17.31,
    )


@pytest.fixture
def pictured(output: FakeOutput, tmp_path: Path) -> FakeOutput:
    """Real pictures and a video as sources; failures with names and messages that are HTML; one source gone since."""
    items = [Item(f"{n:02d} picture.png", num_instances=n % 5) for n in range(12)]
    items += [Item("clip.mp4", size_hw=(64, 96), frame=n, pts_s=n / 4, track=True) for n in range(8)]
    ready = with_sources(tmp_path / "sources", [*items, Item('"><img src=x onerror=alert(2)>.png')])
    ready += [
        Item(f"s3://bucket/{EVIL}", status="failed", error="<b>truncated</b>"),
        Item("killer.jpg", status="quarantined", error_type="Killed"),
    ]
    (tmp_path / "sources" / "03 picture.png").unlink()
    output.commit(ready, num_shards=3)
    write_run(output.store, record_of(output))
    return output


class Page(HTMLParser):
    """Elements, addresses and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.images: list[dict[str, str]] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.addresses += [values[name] for name in ("src", "href", "srcset", "action") if name in values]
        assert not any(name.startswith("on") for name in values), values
        if tag == "img":
            self.images.append(values)
        if tag in ("h1", "h2", "h3"):
            self.headings.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(output: FakeOutput) -> Page:
    return Page(output.store.get("report/index.html").decode())


def test_the_page_says_what_the_views_say(pictured: FakeOutput) -> None:
    written = write_report(pictured.store.uri)
    assert written.index_uri == pictured.store.uri_of("report/index.html")
    views = views_of(pictured.store)
    data = collect(views)
    assert data.statuses == {"ok": 21, "failed": 1, "quarantined": 1}
    assert (data.images, data.frames, data.videos) == (15, 8, 1)
    facts = panels.collect(views)
    assert facts.instances == sum(n % 5 for n in range(12)) + 8 * 3 + 3
    assert sum(facts.histogram) == sum(count for _, count in facts.sizes) == facts.instances
    assert sum(count for _, count in facts.per_item) == 21
    assert [(reason.error_type, reason.count) for reason in data.reasons] == [("Killed", 1), ("Unreadable", 1)]
    text = re.sub(r"\s+", " ", page_of(pictured).text)
    for wanted in ("17.3", "two_stage_detector", "MIT-0", "0.9123", "Killed", pictured.version.fingerprint, "ok 21"):
        assert wanted in text


def test_names_and_messages_are_data(pictured: FakeOutput) -> None:
    write_report(pictured.store.uri)
    source = pictured.store.get("report/index.html").decode()
    page = page_of(pictured)
    assert page.tags.count("script") == 2, "ours and its data, see test_report_script"
    assert "b" not in page.tags
    assert html.escape(EVIL) in source
    assert EVIL in page.text
    assert any("onerror=alert(2)" in image["alt"] for image in page.images)


def test_nothing_is_loaded_from_anywhere(pictured: FakeOutput) -> None:
    write_report(pictured.store.uri)
    page = page_of(pictured)
    assert {address.partition(":")[0] for address in page.addresses if not address.startswith("#")} == {"data"}
    assert "url(" not in pictured.store.get("report/index.html").decode()


def test_pictures_have_alternative_texts_and_headings_come_in_order(pictured: FakeOutput) -> None:
    write_report(pictured.store.uri)
    page = page_of(pictured)
    assert len(page.images) > 12
    assert all(image["alt"] and image["src"].startswith("data:image/webp") for image in page.images)
    assert page.headings[0] == "h1"
    assert page.headings.count("h1") == 1
    order = [int(tag[1]) for tag in page.headings]
    assert all(after - before <= 1 for before, after in pairwise(order))


def test_a_source_that_is_gone_is_a_placeholder(pictured: FakeOutput) -> None:
    galleries = choose_and_load(views_of(pictured.store), 60)
    gone = [sample for gallery in galleries for sample in gallery.samples if "03 picture" in sample.uri]
    assert gone
    assert all(sample.picture is None and "does not exist" in sample.problem for sample in gone)


def test_a_source_that_changed_is_a_placeholder(pictured: FakeOutput, tmp_path: Path) -> None:
    (tmp_path / "sources" / "07 picture.png").write_bytes(b"something else")
    galleries = choose_and_load(views_of(pictured.store), 60)
    (changed,) = [one for gallery in galleries for one in gallery.samples if "07 picture" in one.uri]
    assert changed.picture is None
    assert "changed since it was listed" in changed.problem


def found_in(sample: Sample) -> int:
    """``2 × disc, 1 × box; mean score 0.82`` -> 3; a class may be named 4."""
    return sum(map(int, re.findall(r"(\d+) × \S", sample.summary)))


def test_galleries_show_the_surest_the_least_sure_videos_in_time_and_failures(pictured: FakeOutput) -> None:
    galleries = {gallery.title: gallery for gallery in choose_and_load(views_of(pictured.store), 16)}
    surest, least = galleries["Surest"].samples, galleries["Least sure"].samples
    assert len(surest) == len(least) == 4
    assert {found_in(sample) for sample in surest} <= {1, 2}
    assert {found_in(sample) for sample in least} <= {3, 4}
    strip = galleries["Video clip.mp4"]
    assert strip.is_strip
    assert [sample.frame for sample in strip.samples] == list(range(8))
    assert all(sample.picture for sample in strip.samples)
    assert {sample.status for sample in galleries["Failed"].samples} == {"failed", "quarantined"}


def test_a_tracked_video_shows_frames_one_after_another_where_tracks_come_and_go(output: FakeOutput) -> None:
    """Frames 0..39 show tracks 1-3, but 20-22 nothing: the first eight frames that hold both changes are shown."""
    clip = [Item("clip.mp4", frame=n, pts_s=n / 4, track=True) for n in range(40)]
    output.commit([replace(one, num_instances=0) if 20 <= one.frame < 23 else one for one in clip])
    (strip,) = [gallery for gallery in choose_and_load(views_of(output.store), 8) if gallery.is_strip]
    assert [sample.frame for sample in strip.samples] == list(range(16, 24))
    assert "one after another" in strip.explanation


def test_an_untracked_video_shows_frames_spread_over_it(output: FakeOutput) -> None:
    output.commit([Item("clip.mp4", frame=n, pts_s=n / 4) for n in range(36)])
    (strip,) = [gallery for gallery in choose_and_load(views_of(output.store), 8) if gallery.is_strip]
    assert [sample.frame for sample in strip.samples] == [0, 5, 10, 15, 20, 25, 30, 35]


def test_no_picture_is_loaded_when_time_is_up(pictured: FakeOutput) -> None:
    began = time.monotonic()
    galleries = choose_and_load(views_of(pictured.store), 24, budget_s=0.0)
    assert time.monotonic() - began < 30
    ok = [sample for gallery in galleries for sample in gallery.samples if sample.status == "ok"]
    assert ok
    assert all("run out of time" in sample.problem for sample in ok)


def test_an_empty_output_and_an_unfinished_plan_have_a_page_that_says_so(output: FakeOutput) -> None:
    items = [Item(f"{n}.jpg") for n in range(4)]
    first, _ = output.commit(items, num_shards=2, leave_open=2)
    write_report(output.store.uri)
    assert "Nothing is committed here yet" in page_of(output).text
    output.commit_shard(first, items[:2])
    write_report(output.store.uri)
    assert "1 of 2 shards are committed" in page_of(output).text


def test_a_place_that_is_no_output_gets_no_page(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("hello", b"x")
    with pytest.raises(UsageError, match="holds no results of a job"):
        write_report(store.uri)
    assert [info.key for info in store.list()] == ["hello"]


def test_without_samples_there_are_no_pictures(pictured: FakeOutput) -> None:
    write_report(pictured.store.uri, samples=0)
    assert page_of(pictured).images == []


@pytest.mark.s3
def test_a_report_of_results_and_sources_in_a_bucket(s3_bucket: str, tmp_path: Path) -> None:
    sources = open_store(f"{s3_bucket}/sources")
    local = with_sources(tmp_path / "local", [Item(f"{n}.png") for n in range(3)])
    ready = []
    for item in local:
        name = Path(item.uri).name
        etag = sources.put(name, Path(item.uri).read_bytes())
        ready.append(Item(sources.uri_of(name), etag=etag, scene=item.scene))
    output = FakeOutput(open_store(f"{s3_bucket}/out"))
    output.commit(ready)
    write_report(output.store.uri)
    shown = [image["alt"] for image in page_of(output).images]
    assert len(shown) == 6 and shown.count("what was found") == 3, "a layer upon each picture"
