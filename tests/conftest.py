"""Real services for tests, each started at most once a session, in folders of their own, never the user's."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.ray_session import LOOPBACK_SWITCH
from infra.seaweedfs import S3Endpoint, SeaweedFS, endpoint_of
from infra.standing import StandingService
from tests.faults import FaultyS3

# Ray reads the switch when it is imported, and any test may be the first to import it.
os.environ[LOOPBACK_SWITCH] = "0"
# Ray's workers step back behind everything else on the machine (nice 15): deadlines of seconds would then trip on them.
os.environ["RAY_worker_niceness"] = "0"


@pytest.fixture(scope="session")
def services_dir() -> Iterator[Path]:
    """A short path (Ray and SeaweedFS open Unix sockets) that holds every service of this session."""
    folder = Path(tempfile.mkdtemp(prefix="vmt", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def session_env() -> Iterator[pytest.MonkeyPatch]:
    """Environment changes that last for the session."""
    patch = pytest.MonkeyPatch()
    yield patch
    patch.undo()


@pytest.fixture(scope="session")
def s3_server(services_dir: Path, session_env: pytest.MonkeyPatch) -> Iterator[S3Endpoint]:
    """A SeaweedFS with an empty bucket ``tests``; the AWS_* variables point to it from now on."""
    service = StandingService(SeaweedFS(), services_dir)
    endpoint = endpoint_of(service.ensure(timeout_s=60.0))
    try:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            session_env.delenv(name)
        for name, value in endpoint.environment().items():
            session_env.setenv(name, value)
        from infra.store_s3 import create_bucket

        create_bucket("s3://tests")
        yield endpoint
    finally:
        service.stop(timeout_s=10.0)


@pytest.fixture
def s3_bucket(s3_server: S3Endpoint, request: pytest.FixtureRequest) -> str:
    """A root URI of this test alone: a fresh prefix in the bucket (buckets cost volumes on the server)."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40]
    return f"s3://tests/{name}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def faulty_s3(s3_server: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """A proxy before the server; AWS_ENDPOINT_URL points to it, so stores opened from now on go through it."""
    with FaultyS3(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def store_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh root, once as a folder and once in the bucket: the contract is the same."""
    return str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3_bucket")


@pytest.fixture(scope="session")
def prefect_api(services_dir: Path, session_env: pytest.MonkeyPatch) -> Iterator[str]:
    """A Prefect server of this session; the environment (and an imported prefect) points to it from now on."""
    from infra import services

    session_env.setenv("VISIONMILL_STATE_DIR", str(services_dir))
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        session_env.delenv(name)
    before = set(os.environ)
    try:
        yield services.ensure_prefect(state_dir=services_dir)
    finally:
        send_what_prefect_holds_back()
        services.down(state_dir=services_dir)
        for name in set(os.environ) - before:
            if name.startswith("PREFECT_") or name == "DO_NOT_TRACK":
                del os.environ[name]


def send_what_prefect_holds_back() -> None:
    """Logs and events of flows in this process: its end would wait a minute for a server that is gone by then."""
    if "prefect.logging.handlers" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        EventsWorker.drain_all(timeout=10)
        APILogWorker.drain_all(timeout=10)


@pytest.fixture(scope="session")
def local_ray(services_dir: Path, session_env: pytest.MonkeyPatch) -> Iterator[object]:
    """A local Ray with two processors for the session; a RaySession. Code under test that opens a session shares it.

    Ask for ``s3_server`` before it, if workers need the AWS_* variables: they inherit the environment of this moment.
    """
    from infra.ray_session import ray_session

    session_env.setenv("VISIONMILL_STATE_DIR", str(services_dir))
    with ray_session(num_cpus=2) as session:
        yield session
