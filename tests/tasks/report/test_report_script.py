"""What the page's script does, done in a real browser: filter, list, enlarge, turn the pages, take the masks off."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UsageError
from tasks.output.query import run_query
from tasks.report.report import write_report
from tests.tasks.output.fake_output import FakeOutput, Item, with_sources
from tests.tasks.report.test_report import EVIL, pictured
from tests.tasks.report.test_report_browser import CHROMIUM, browse

__all__ = ["pictured"]  # the fixture

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

HELPERS = """
const one = (s) => document.querySelector(s), every = (s) => [...document.querySelectorAll(s)];
const seen = (s) => every(s).filter((e) => !e.closest('[hidden]'));
const set = (name, value) => { const f = one('#filter').elements[name]; f.value = value;
  f.dispatchEvent(new Event('input', {bubbles: true})); };
const press = (key) => one('.stage').dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
const said = () => one('#viewer .said strong').textContent;
"""


def run_in(page_uri: str, folder: Path, steps: str, *, clock_s: float = 1.0) -> Any:
    """What an expression list, run in a copy of the page after its own script, leaves in ``out``.

    Args:
        clock_s: how far the page's clock runs, which waits for nobody but for what is loaded.
    """
    text = (Path(page_uri)).read_text()
    policy = 'http-equiv="Content-Security-Policy"'
    script = f"<script>{HELPERS}const out = {{}}; {steps}; document.body.dataset.out = JSON.stringify(out)</script>"
    page = folder / "tried.html"
    page.write_text(text.replace(policy, 'name="was-policy"').replace("</body>", f"{script}</body>"))
    dom = browse(
        page, folder, "--window-size=1280,900", f"--virtual-time-budget={1000 * clock_s:.0f}", "--dump-dom"
    ).stdout
    found = re.search(r'data-out="([^"]*)"', dom)
    assert found, "the steps ran to their end"
    return json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))


def test_the_policy_lets_run_our_script_alone(pictured: FakeOutput) -> None:
    page = Path(write_report(pictured.store.uri).index_uri).read_text()
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1 and page.count("<script") == 2, "ours, and the data that it reads"
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page and "unsafe-eval" not in page
    data = re.search(r'<script type="application/json" id="item-data">(.*?)</script>', page, re.DOTALL)
    assert data is not None and "<" not in data[1]
    content = json.loads(data[1])
    assert len(content["rows"]) == 23 and content["names"] == ["box", "disc", "sky"]
    assert any(content["root"] + row[0] == f"s3://bucket/{EVIL}" for row in content["rows"])


@pytest.mark.browser
@needs_browser
def test_pictures_and_items_are_filtered_by_class_score_status_and_address(
    pictured: FakeOutput, tmp_path: Path
) -> None:
    page = write_report(pictured.store.uri).index_uri
    out = run_in(
        page, tmp_path, """
        const state = () => [seen('#pictures-body figure').length, one('#list-count').textContent,
                             seen('#list tbody tr').length];
        out.all = state();
        set('status', 'failed'); out.failed = state(); out.reason = one('#list tbody .why').textContent;
        set('status', ''); set('name', 'box'); out.box = state();
        set('score', '0.9'); out.sureBox = state(); set('name', 'disc'); out.sureDisc = state();
        set('score', '0'); set('name', ''); set('text', 'CLIP'); out.clip = state();
        one('[data-show-status=quarantined]').click();
        """,
    )  # fmt: skip
    assert out["all"][1:] == ["23 of 23 listed items", 23]
    assert out["failed"][1:] == ["1 of 23 listed items", 1] and out["reason"].endswith("<b>truncated</b>")
    asked = "SELECT count(DISTINCT (uri, frame)) AS n FROM instances WHERE "
    conditions = {"box": "name = 'box'", "disc": "name = 'disc' AND score >= 0.9"}
    counted = {name: run_query(pictured.store.uri, asked + each)["n"][0].as_py() for name, each in conditions.items()}
    assert out["box"][1] == f"{counted['box']} of 23 listed items" and 0 < out["box"][0] < out["all"][0]
    assert out["sureBox"][:2] == [0, "0 of 23 listed items"], "boxes score 0.85"
    assert out["sureDisc"][1] == f"{counted['disc']} of 23 listed items"
    assert out["clip"] == [8, "8 of 23 listed items", 8]


@pytest.mark.browser
@needs_browser
def test_a_picture_is_enlarged_zoomed_and_bared_and_the_next_is_a_key_away(
    pictured: FakeOutput, tmp_path: Path
) -> None:
    page = write_report(pictured.store.uri).index_uri
    out = run_in(
        page, tmp_path, """
        const links = every('.gallery figure .frame > a:not(.close)'); links[0].click();
        out.open = one('#viewer').open; out.first = said();
        out.layers = every('#viewer .layer').map((e) => e.hidden);
        press('m'); out.bare = every('#viewer .layer').map((e) => e.hidden); press('m');
        press('+'); press('+'); out.zoom = one('[data-do=zoom]').textContent;
        out.transform = one('.stage div').style.transform;
        press('ArrowRight'); out.second = said(); press('ArrowLeft'); out.back = said();
        press('ArrowLeft'); out.last = said();
        out.queries = every('#viewer .said button').map((e) => e.title);
        one('[data-do=close]').click(); out.closed = one('#viewer').open;
        every('.strip figure .frame > a:not(.close)')[2].click(); out.frame = said();
        press('ArrowRight'); out.nextFrame = said();
        out.video = one('video').src.slice(0, 22);
        """,
    )  # fmt: skip
    assert out["open"] is True and out["closed"] is False
    assert out["layers"] == [False] and out["bare"] == [True]
    assert out["zoom"] == "225 %" and "scale(2.25)" in out["transform"]
    assert out["first"] == out["back"] != out["second"] and out["last"] not in (out["first"], out["second"])
    uri, query = out["queries"]
    assert uri in out["last"] and "SELECT * FROM items WHERE uri = " in query and pictured.store.uri in query
    assert out["frame"].endswith("clip.mp4, frame 2") and out["nextFrame"].endswith("frame 3")
    assert out["video"] == "data:video/mp4;base64,"


@pytest.mark.browser
@needs_browser
def test_every_button_of_the_enlarged_picture_does_what_it_says(pictured: FakeOutput, tmp_path: Path) -> None:
    page = write_report(pictured.store.uri).index_uri
    out = run_in(
        page, tmp_path, """
        const button = (name) => one(`[data-do=${name}]`), links = every('.gallery figure .frame > a:not(.close)');
        const at = () => [button('zoom').textContent, one('.stage div').style.transform];
        links[0].click(); out.first = said();
        button('next').click(); out.next = said(); button('previous').click(); out.previous = said();
        button('larger').click(); out.larger = at();
        one('.stage').dispatchEvent(new PointerEvent('pointermove', {buttons: 1, movementX: 9, movementY: -4}));
        out.moved = at(); button('smaller').click(); out.smaller = at();
        one('.stage').dispatchEvent(new WheelEvent('wheel', {deltaY: -1})); out.wheel = at();
        button('zoom').click(); out.whole = at();
        button('masks').click(); out.bare = [every('#viewer .layer')[0].hidden, button('masks').ariaPressed];
        button('next').click(); out.staysBare = every('#viewer .layer').every((e) => e.hidden);
        button('masks').click(); out.masks = [every('#viewer .layer')[0].hidden, button('masks').ariaPressed];
        out.canPlay = !button('play').hidden; button('close').click(); out.closed = !one('#viewer').open;
        """,
    )  # fmt: skip
    assert out["first"] == out["previous"] != out["next"]
    assert out["larger"] == ["150 %", "translate(0px, 0px) scale(1.5)"]
    assert out["moved"] == ["150 %", "translate(9px, -4px) scale(1.5)"]
    assert out["smaller"] == ["100 %", "translate(0px, 0px) scale(1)"] == out["whole"] and out["wheel"][0] == "120 %"
    assert out["bare"] == [True, "false"] and out["staysBare"] and out["masks"] == [False, "true"]
    assert out["closed"] and not out["canPlay"], "one picture after another is for the frames of a video"


@pytest.mark.browser
@needs_browser
def test_a_video_with_its_tracks_is_played_and_its_frames_are_shown_in_turn(
    pictured: FakeOutput, tmp_path: Path
) -> None:
    page = write_report(pictured.store.uri).index_uri
    out = run_in(
        page, tmp_path, """
        const wait = (s) => new Promise((done) => setTimeout(done, 1000 * s)), save = () => {
          document.body.dataset.out = JSON.stringify(out); };
        (async () => {
          const video = one('video'); await video.play();
          for (let n = 0; n < 2000 && !video.currentTime; n++) await wait(.02);
          out.video = [video.videoWidth > 0, video.currentTime > 0, video.error === null, video.loop]; save();
          every('.strip figure .frame > a:not(.close)')[7].click(); out.last = said();
          one('[data-do=play]').click(); await wait(.3); out.next = said(); save();
          one('[data-do=play]').click(); out.paused = said(); await wait(.5); out.still = said(); save();
        })();
        """,
        clock_s=60.0,
    )  # fmt: skip
    assert out["video"] == [True, True, True, True]
    assert out["last"].endswith("frame 7") and out["next"].endswith("clip.mp4") and out["paused"] == out["still"]


@pytest.mark.browser
@needs_browser
def test_headings_and_videos_of_which_nothing_fits_the_filter_go_too(pictured: FakeOutput, tmp_path: Path) -> None:
    page = write_report(pictured.store.uri).index_uri
    out = run_in(
        page, tmp_path, """
        const state = () => [seen('#pictures-body h3').map((e) => e.textContent), seen('#pictures-body video').length];
        out.all = state(); set('status', 'failed'); out.failed = state(); set('status', ''); out.again = state();
        """,
    )  # fmt: skip
    assert len(out["all"][0]) > 2 and out["all"][1] == 1 and out["again"] == out["all"]
    assert out["failed"] == [["Failed"], 0]


@pytest.mark.browser
@needs_browser
def test_the_query_that_is_copied_finds_the_row_whatever_its_name(pictured: FakeOutput, tmp_path: Path) -> None:
    page = write_report(pictured.store.uri).index_uri
    out = run_in(page, tmp_path, "out.all = every('#list td .copy button:last-child').map((e) => e.title)")
    assert len(out["all"]) == 23
    for command in out["all"]:
        tool, verb, output, sql = shlex.split(command)
        assert (tool, verb, output) == ("visionmill", "query", pictured.store.uri)
        assert run_query(output, sql).num_rows == 1


def test_a_report_of_ten_thousand_items_lists_them_all_and_stays_small(output: FakeOutput) -> None:
    items = [Item(f"s3://bucket/photos/2026/{n % 30:02d}/IMG_{n:06d}.jpg", num_instances=n % 7, size_hw=(12, 16))
             for n in range(9_000)]  # fmt: skip
    items += [Item(f"s3://bucket/photos/2026/broken/{n:06d}.jpg", status="failed") for n in range(1_000)]
    output.commit(items, num_shards=2)
    page = Path(write_report(output.store.uri, samples=0).index_uri).read_text()
    data = re.search(r'id="item-data">(.*?)</script>', page, re.DOTALL)
    assert data is not None and len(json.loads(data[1])["rows"]) == 10_000
    assert len(page.encode()) < 1_500_000, "pictures come on top"


def test_of_more_items_than_are_listed_no_failure_is_left_out(
    output: FakeOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.report.item_list.MAX_ITEMS", 10)
    output.commit([*[Item(f"a{n}.jpg") for n in range(30)], *[Item(f"z{n}.jpg", status="failed") for n in range(6)]])
    page = Path(write_report(output.store.uri, samples=0).index_uri).read_text()
    data = re.search(r'id="item-data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    rows = json.loads(data[1])["rows"]
    assert len(rows) == 10 and sum(row[2] == 1 for row in rows) == 6
    assert "10 of 36 are listed here, failures first" in re.sub(r"\s+", " ", page)


def test_two_versions_are_compared(pictured: FakeOutput, tmp_path: Path) -> None:
    old = pictured.version.fingerprint
    again = pictured.new_version(score_threshold=0.9)
    ready = with_sources(tmp_path / "more", [Item("new.png"), Item("02 picture.png", num_instances=2)])
    there = Item(str(tmp_path / "sources" / "09 picture.png"), num_instances=1, scene="09 picture.png")
    again.commit([*ready, there])
    page = Path(write_report(pictured.store.uri, compare_with=old[:8]).index_uri).read_text()
    words = re.sub(r"\s+", " ", re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL))
    assert f"Before: {old} . Now: {again.version.fingerprint}".replace(" .", ".") in words
    assert "ok not there 20" in words and "not there ok 2" in words and "ok ok 1" in words
    assert "In 1 items another number of things was found" in words
    assert "before: 2 × disc, 1 × box, 1 × sky" in words and "now: 1 × disc" in words
    with pytest.raises(UsageError, match=r"0 versions in .* are called 'nosuch'"):
        write_report(pictured.store.uri, compare_with="nosuch")
