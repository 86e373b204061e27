"""The report in a real browser: it opens, says nothing on the console, asks nobody for anything."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.report.report import write_report
from tests.tasks.output.fake_output import FakeOutput
from tests.tasks.report.test_report import EVIL, pictured

__all__ = ["pictured"]  # the fixture

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


def browse(page: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",  # the browser's own services stay unreached
        "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", f"--log-net-log={folder / 'net.json'}",
    ]  # fmt: skip
    command = [CHROMIUM, *flags, *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)


def requested_by_pages(folder: Path) -> set[str]:
    """Addresses that pages asked for; the browser's own requests have no origin, addresses inside of a page no job."""
    log = json.loads((folder / "net.json").read_text())
    started = [event["params"] for event in log["events"] if "url" in event.get("params", {})]
    asked = {one["url"] for one in started if one.get("initiator", "not an origin") != "not an origin"}
    return {address for address in asked if not address.startswith(("data:", "file:"))}


def test_the_page_opens_without_a_console_message_and_without_a_request(pictured: FakeOutput, tmp_path: Path) -> None:
    write_report(pictured.store.uri)
    page = Path(pictured.store.uri) / "report" / "index.html"
    seen = browse(page, tmp_path, "--window-size=1280,1600", "--dump-dom")
    assert "CONSOLE" not in seen.stderr, seen.stderr
    assert requested_by_pages(tmp_path) == set()
    assert "Segmentation of" in seen.stdout
    assert EVIL.replace("<", "&lt;").replace(">", "&gt;") in seen.stdout


def test_a_page_that_asks_for_something_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "asking.html"
    page.write_text("<title>x</title><img src='http://127.0.0.1:9/x.png'><script>console.log('hello')</script>")
    seen = browse(page, tmp_path, "--dump-dom")
    assert "CONSOLE" in seen.stderr
    assert requested_by_pages(tmp_path) == {"http://127.0.0.1:9/x.png"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_drawn_in_both_schemes(pictured: FakeOutput, tmp_path: Path, scheme: str) -> None:
    write_report(pictured.store.uri)
    page = Path(pictured.store.uri) / "report" / "index.html"
    target = tmp_path / f"{scheme}.png"
    setting = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    browse(page, tmp_path, "--window-size=900,1200", setting, f"--screenshot={target}")
    pixels = np.asarray(Image.open(target).convert("L"), float)
    ground = np.median(pixels)
    assert (ground < 40) if scheme == "dark" else (ground > 225)
    assert pixels.std() > 10, "something is drawn on it"


def test_a_narrow_window_needs_no_sideways_scrolling(pictured: FakeOutput, tmp_path: Path) -> None:
    write_report(pictured.store.uri)
    text = (Path(pictured.store.uri) / "report" / "index.html").read_text()
    # the page itself runs no script: a copy without its policy measures itself
    measured = text.replace('http-equiv="Content-Security-Policy"', 'name="was-policy"').replace(
        "</body>",
        "<script>document.title = 'overflow ' + (document.documentElement.scrollWidth - innerWidth)</script></body>",
    )
    page = tmp_path / "measured.html"
    page.write_text(measured)
    seen = browse(page, tmp_path, "--window-size=500,900", "--dump-dom")
    overflow = int(seen.stdout.split("<title>overflow ")[1].split("<")[0])
    assert overflow <= 0
