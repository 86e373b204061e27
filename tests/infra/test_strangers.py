"""Another user of the machine: sees nothing of what we start, and changes nothing."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.seaweedfs import SeaweedFS
from infra.standing import StandingService

NOBODY = 65534
ROOT = Path(__file__).parents[2]
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # how a gRPC client begins

pytestmark = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can act as somebody else")


def as_nobody(act: Callable[[], object]) -> object:
    """What ``act`` gives, or the name of the error that it raises, in a process of the user nobody."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            answer: object = act()
        except BaseException as error:  # noqa: BLE001 - its name is the answer
            answer = type(error).__name__
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as answers:
        return json.load(answers)


def http(url: str, method: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=None, method=method), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def grpc(port: int) -> str:
    """What a client without a certificate gets."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw, context.wrap_socket(raw) as connection:
        connection.sendall(HELLO)
        return connection.recv(100).hex()


def test_the_local_s3_server_shows_its_folder_and_its_parts_to_nobody_else(tmp_path: Path) -> None:
    service = StandingService(SeaweedFS(), tmp_path / "state")
    site = service.ensure(timeout_s=60)
    try:
        os.chmod(tmp_path, 0o755)
        for above in list(tmp_path.parents)[:3]:
            if above.stat().st_uid == os.getuid() and "pytest" in str(above):
                os.chmod(above, 0o755)
        assert as_nobody(lambda: os.listdir(site.folder)) == "PermissionError"
        assert as_nobody(lambda: site.log.read_text()) == "PermissionError"
        doors = {name: port for name, port in site.ports.items() if name.endswith("_grpc")}
        assert {name: as_nobody(lambda port=port: grpc(port)) for name, port in doors.items()} == dict.fromkeys(
            doors, "SSLError"
        )
        filer, master = (f"http://127.0.0.1:{site.ports[part]}" for part in ("filer", "master"))
        for method, url in (
            ("GET", f"{filer}/buckets/"),
            ("DELETE", f"{filer}/buckets/x?recursive=true"),
            ("POST", f"{filer}/y?mv.from=/buckets/x"),
            ("GET", f"{master}/dir/assign"),
            ("GET", f"{master}/dir/lookup?fileId=1,01637037d6&read=yes"),
            ("GET", f"{master}/col/delete?collection=x"),
        ):
            assert as_nobody(lambda method=method, url=url: http(url, method)) in (401, 404), url
    finally:
        service.stop(timeout_s=20)


RAY = """
import sys
from infra.ray_session import ray_session
with ray_session(num_cpus=1, object_store_bytes=80 << 20):
    import ray
    print(ray._private.worker.global_worker.node.get_session_dir_path(), flush=True)
    sys.stdin.read()
"""


@pytest.mark.ray
def test_the_folder_of_a_local_ray_is_closed_to_everybody_else(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RAY],
        cwd=ROOT,
        env=os.environ | {"VISIONMILL_STATE_DIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    session = Path(process.stdout.readline().strip())
    assert (session / "logs").is_dir()
    tried = [
        lambda: os.listdir(session),
        lambda: os.listdir(session.parent),
        lambda: os.rename(session / "logs", session / "mine"),
        lambda: (session.parent / "mine").mkdir(),
        lambda: socket.socket(socket.AF_UNIX).connect(str(session / "sockets" / "raylet")),
    ]
    assert [as_nobody(act) for act in tried] == ["PermissionError"] * len(tried)
    process.communicate("")
    assert process.returncode == 0
    assert not session.parent.parent.exists()
