"""The door that logs a browser in: only with the password, which stands in no address and no argument."""

from __future__ import annotations

import base64
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from infra import services
from infra.prefect_page import LOGIN_PATH, login_file
from infra.prefect_server import auth_string
from infra.standing import Site
from tests.flows.command import visionmill
from tests.tasks.report.test_report_browser import CHROMIUM, browse

pytestmark = pytest.mark.prefect


@pytest.fixture
def site(prefect_api: str, services_dir: Path) -> Site:
    return services.ensure_prefect_site(services_dir)


def post(site: Site, **form: str) -> tuple[int, str]:
    data = urllib.parse.urlencode(form).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{site.ports['api']}{LOGIN_PATH}", data, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_who_knows_the_password_is_logged_in_and_nobody_else(site: Site) -> None:
    status, page = post(site, auth=auth_string(site), next="/runs/flow-run/1?tab=Logs")
    assert status == 200 and "localStorage" in page and '"/runs/flow-run/1?tab=Logs"' in page
    for form in ({}, {"auth": ""}, {"auth": "visionmill:wrong"}, {"auth": "x" * 10_000}):
        status, page = post(site, **form)
        assert status == 401 and "localStorage" not in page and site.secrets["password"] not in page


@pytest.mark.parametrize(
    "place", ["//evil.example/x", "https://evil.example", "/\\evil.example", "javascript:alert(1)"]
)
def test_it_leads_nowhere_but_to_its_own_pages(site: Site, place: str) -> None:
    status, page = post(site, auth=auth_string(site), next=place)
    assert status == 200 and 'location.replace("/")' in page and "evil" not in page and "javascript" not in page


def test_a_path_cannot_break_out_of_the_page(site: Site) -> None:
    _, page = post(site, auth=auth_string(site), next="/</script><script>alert(1)</script>")
    assert page.count("<script>") == 1
    assert login_file("http://127.0.0.1:1", "a:b", '/"><script>').count("<script>") == 1


def test_what_a_browser_is_told_to_open_is_a_file_of_the_owner_alone(
    site: Site, services_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL")
    opened, plain = services.page_of("/runs", state_dir=services_dir)
    password = site.secrets["password"]
    assert opened.startswith("file://") and password not in opened + plain
    assert plain == f"http://127.0.0.1:{site.ports['api']}/runs"
    file = Path(opened.removeprefix("file://"))
    assert file.stat().st_mode & 0o777 == 0o600 and password in file.read_text()


def test_a_server_that_the_user_named_keeps_its_own_log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api")
    assert services.page_of("/runs") == ("https://prefect.example/runs", "https://prefect.example/runs")


REFUSED = ("Login", "Authentication failed")
"""What a browser shows that is not logged in: the form, or on the way to it what the server answered."""


def _settled(file: Path, folder: Path) -> str:
    """What a browser shows in the end; in virtual time a view may still be fading into the next: it looks again."""
    own = ("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--virtual-time-budget=20000", "--dump-dom")
    page = ""
    for _ in range(4):
        page = browse(file, folder, *own).stdout
        if "<title>Prefect Server</title>" not in page or any(words in page for words in REFUSED):
            break
    return page


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_that_opens_the_file_is_logged_in_and_another_one_is_asked(
    site: Site, services_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL")
    opened, plain = services.page_of("/runs", state_dir=services_dir)
    without = tmp_path / "without.html"
    without.write_text(f"<script>location.replace('{plain}')</script>")
    seen = []
    for name, file in (("with", Path(opened.removeprefix("file://"))), ("without", without)):
        (tmp_path / name).mkdir()
        seen.append(_settled(file, tmp_path / name))
    titles = [text.partition("<title>")[2].partition("<")[0] for text in seen]
    assert "Runs" in titles[0] and not any(words in seen[0] for words in REFUSED), seen[0]
    assert "Runs" not in titles[1] and any(words in seen[1] for words in REFUSED), seen[1]


def test_an_address_of_a_run_is_opened_where_it_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api")
    asked = "http://127.0.0.1:4200/runs/flow-run/1?tab=Artifacts"
    said = visionmill("ui", asked, "--no-browser", "--json").summary
    assert said["address"] == "https://prefect.example/runs/flow-run/1?tab=Artifacts"


def test_it_is_where_prefects_pages_look_for_the_password(site: Site) -> None:
    import prefect

    _, page = post(site, auth=auth_string(site), next="/")
    kept = base64.b64encode(auth_string(site).encode()).decode()
    assert f"localStorage.setItem('prefect-password', \"{kept}\")" in page
    scripts = (Path(prefect.__file__).parent / "server" / "ui").rglob("*.js")
    assert any("localStorage.setItem(`prefect-password`,btoa(" in script.read_text("utf-8") for script in scripts)
