"""The real standing services: up, reachable with our secrets only, on loopback only, down again."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra import services
from infra.prefect_server import ZOMBIE_AUTOMATION, request
from infra.processes import is_loopback, listeners, tree
from infra.seaweedfs import S3Endpoint, answers
from infra.settings import settings
from infra.standing import ServiceStatus, Site, StandingService

pytestmark = [pytest.mark.prefect, pytest.mark.s3, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Services of this module alone, all three up."""
    folder = tmp_path_factory.mktemp("state")
    patch = pytest.MonkeyPatch()
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "AWS_"))]:
        patch.delenv(name)
    patch.setenv("VISIONMILL_STATE_DIR", str(folder))
    try:
        services.up(s3=True, worker=True)
        yield folder
    finally:
        services.down()
        patch.undo()


def _by_name() -> dict[str, ServiceStatus]:
    return {one.name: one for one in services.status().services}


def _code(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_all_are_running_and_answer(state_dir: Path) -> None:
    found = services.status()
    assert found.state_dir == state_dir
    assert {one.name: one.state for one in found.services} == {
        "prefect": "running",
        "seaweedfs": "running",
        f"worker-{settings().work_pool}": "running",
    }


def test_nothing_listens_beyond_loopback(state_dir: Path) -> None:
    for service in services.status().services:
        assert service.pid is not None
        sockets = listeners(tree(psutil.Process(service.pid)))
        if service.ports:
            assert sockets, f"{service.name} should listen somewhere"
        wide = [(address, port) for _, address, port in sockets if not is_loopback(address)]
        assert wide == [], f"{service.name} listens beyond loopback"


def test_bringing_up_again_starts_nothing(state_dir: Path) -> None:
    before = {name: one.pid for name, one in _by_name().items()}
    services.up(s3=True, worker=True)
    assert {name: one.pid for name, one in _by_name().items()} == before


def test_prefect_asks_for_the_password(state_dir: Path) -> None:
    url = _by_name()["prefect"].url
    assert _code(f"{url}/api/admin/version") == 401
    assert _code(f"{url}/api/flow_runs/count") in (401, 405)
    assert services.ensure_prefect_site(state_dir).secrets["password"] not in repr(services.status())


def test_the_zombie_automation_is_installed_once(state_dir: Path) -> None:
    site = services.ensure_prefect_site(state_dir)
    found = [one for one in request(site, "POST", "/automations/filter", {}) if one["name"] == ZOMBIE_AUTOMATION]
    assert len(found) == 1
    assert found[0]["enabled"]
    assert found[0]["actions"][0]["state"] == "CRASHED"


def test_s3_refuses_strangers_at_every_door(state_dir: Path) -> None:
    endpoint = services.ensure_s3(bucket="locked")
    assert answers(endpoint, timeout_s=10)
    assert not answers(S3Endpoint(endpoint.url, endpoint.access_key, "wrong"), timeout_s=10)
    ports = _by_name()["seaweedfs"].ports
    for path in ("/", "/buckets/", "/buckets/locked/"):
        assert _code(f"http://127.0.0.1:{ports['filer']}{path}") == 404
    assert _code(f"http://127.0.0.1:{ports['s3']}/locked") == 403
    upload = urllib.request.Request(f"http://127.0.0.1:{ports['filer']}/buckets/locked/x", data=b"x", method="PUT")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(upload, timeout=10)
    assert caught.value.code == 404


def test_a_bucket_that_nobody_made_does_not_appear_by_a_typing_error(state_dir: Path) -> None:
    program = """
        from infra.errors import BucketMissing
        from infra.store import open_store
        try:
            open_store("s3://no-such-bucket").put("x", b"1")
        except BucketMissing:
            print("missing")
    """
    assert _python(program).strip() == "missing"


def test_the_exports_point_a_shell_at_the_services(state_dir: Path) -> None:
    services.ensure_s3(bucket="shell")
    program = (
        "import os, urllib.request; from infra.store import open_store; "
        "open_store('s3://shell').put('x', b'from a shell'); print(open_store('s3://shell').get('x').decode()); "
        "print(os.environ['PREFECT_SERVER_ALLOW_EPHEMERAL_MODE'])"
    )
    script = f"{services.environment_exports()}\nexec '{sys.executable}' -c \"{program}\""
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    answer = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env=clean, cwd=Path(__file__).parents[2]
    )
    assert answer.stdout.split("\n")[:2] == ["from a shell", "false"]


def test_a_flow_in_another_process_is_recorded(state_dir: Path) -> None:
    program = """
        from infra import services
        services.ensure_prefect()
        from prefect import flow
        @flow(name="recorded", log_prints=False)
        def recorded():
            return 3
        print("answer", recorded())
    """
    assert "answer 3" in _python(program)
    runs = request(services.ensure_prefect_site(state_dir), "POST", "/flow_runs/filter", {})
    assert [run["state_type"] for run in runs if run["state_type"] == "COMPLETED"]


def test_an_imported_prefect_learns_of_the_server(state_dir: Path) -> None:
    program = """
        import prefect
        from prefect.settings import PREFECT_API_URL
        from infra import services
        url = services.ensure_prefect()
        print(PREFECT_API_URL.value() == url)
    """
    assert _python(program).strip() == "True"


def test_a_server_that_the_user_named_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example:4200/api")
    monkeypatch.setenv("VISIONMILL_STATE_DIR", str(tmp_path))
    assert services.ensure_prefect() == "http://prefect.example:4200/api"
    assert services.status().services[0].state == "stopped"


def test_stored_objects_survive_a_killed_server_and_are_there_as_soon_as_it_is_up(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISIONMILL_STORE_ATTEMPTS", "1")
    _python("""
        from infra import services
        import os
        os.environ.update(services.ensure_s3(bucket="durable").environment())
        from infra.store import open_store
        store = open_store("s3://durable")
        print(all(store.put_if_absent(f"k{n}", b"v" * 1000) for n in range(30)))
    """)
    psutil.Process(_by_name()["seaweedfs"].pid).kill()
    answer = _python("""
        from infra import services
        import os
        os.environ.update(services.ensure_s3().environment())
        from infra.store import open_store
        store = open_store("s3://durable")
        print(len([1 for found in store.list() if store.get(found.key) == b"v" * 1000]))
    """)
    assert answer.strip() == "30"


def test_down_stops_everything_and_up_finds_it_again(tmp_path: Path) -> None:
    """With S3 alone: the others stop the same way, and take longer to come back."""
    service = services._s3(tmp_path)
    site = service.ensure(timeout_s=settings().service_start_timeout_s)
    leader = psutil.Process(service.status().pid)
    members = tree(leader)
    started = time.monotonic()
    assert services.down(state_dir=tmp_path) == ("seaweedfs",)
    assert time.monotonic() - started < 60
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in members)
    assert services.down(state_dir=tmp_path) == ()
    assert not list(Path("/tmp").glob(f"seaweedfs-*-{site.ports['s3']}.sock"))
    assert isinstance(service, StandingService)
    again = service.ensure(timeout_s=settings().service_start_timeout_s)
    assert isinstance(again, Site)
    assert again.ports == site.ports
    services.down(state_dir=tmp_path)


def _python(program: str) -> str:
    """Run in a fresh process that has the environment of the services; its output."""
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        env={**os.environ, **services.environment()},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-2000:]
    return answer.stdout
