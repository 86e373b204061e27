"""A local Ray: loopback only, gone when the block ends or the driver dies, plain about what it lacks."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from infra.errors import ServiceError, UsageError
from infra.machine import malloc_environment
from infra.processes import ProcessId, is_loopback
from infra.ray_session import RaySession, package_folders, ray_session, sweep_temp_folders

ROOT = Path(__file__).parents[2]
ray_test = [pytest.mark.ray, pytest.mark.timeout(600)]

SESSION = """
import json, os, sys, time
import psutil
from infra.machine import malloc_environment
from infra.processes import ProcessId, listeners, tree
from infra import ray_session as module
from infra.ray_session import ray_session
NAMES = ("CUDA_VISIBLE_DEVICES", "RAY_AUTH_MODE", *malloc_environment())
end, awaited = module._end, []
def watched_end(started):
    alive = [one.process() for one in started.values()]
    awaited.extend(" ".join(process.cmdline()) for process in alive if process is not None)
    end(started)
module._end = watched_end
with ray_session(num_cpus=2) as session:
    import ray
    @ray.remote(num_cpus=1)
    def look():
        return {name: os.environ.get(name) for name in NAMES}
    seen = ray.get(look.options(runtime_env={"env_vars": session.worker_environment()}).remote())
    with ray_session() as shared:
        nested = [shared.worker_slots, shared.is_local]
    still = ray.is_initialized()
    members = tree(psutil.Process())
    print(json.dumps({
        "slots": session.worker_slots, "gpus": session.num_gpus, "local": session.is_local, "worker": seen,
        "nested": nested, "still": still, "started": [[one.pid, one.create_time()] for one in members[1:]],
        "listening": [address for _, address, _ in listeners(members)],
        "temp": ray._private.worker.global_worker.node.get_temp_dir_path(),
    }), flush=True)
    if len(sys.argv) > 1:
        time.sleep(600)
print(json.dumps({"left": [one.pid for one in tree(psutil.Process())[1:]], "awaited": awaited}))
"""


HEAD = """
import json, shutil, subprocess, sys, tempfile
from infra.ray_session import prepare_local_environment
prepare_local_environment()
import ray
temp = tempfile.mkdtemp(prefix="vmhead-", dir="/tmp")
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 << 20, _temp_dir=temp, log_to_driver=False)
address = ray.get_runtime_context().gcs_address
joined = subprocess.run([sys.executable, "-c", sys.argv[1], address], capture_output=True, text=True)
still = ray.cluster_resources()["CPU"]
print(json.dumps({"joined": joined.stdout, "error": joined.stderr[-2000:], "code": joined.returncode, "still": still}))
ray.shutdown()
shutil.rmtree(temp, ignore_errors=True)
"""

JOINING_DRIVER = """
import sys
from infra.ray_session import ray_session
with ray_session(sys.argv[1]) as session:
    import ray
    @ray.remote(num_cpus=1)
    def where():
        import infra.errors, tasks, flows, modelkit
        return infra.errors.__file__
    print(session.is_local, session.worker_slots, ray.get(where.remote()))
"""


def _environment(state_dir: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "VISIONMILL_STATE_DIR": str(state_dir), "HOME": str(state_dir)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, dict]:
    """A whole session in a process of its own: its state folder, what it saw inside, what was left after."""
    import json

    state_dir = tmp_path_factory.mktemp("state")
    answer = subprocess.run(
        [sys.executable, "-c", SESSION], capture_output=True, text=True, check=False, cwd=ROOT,
        env=_environment(state_dir),
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    inside, after = (json.loads(line) for line in answer.stdout.splitlines() if line.startswith("{"))
    return state_dir, inside, after


class TestLocal:
    pytestmark = ray_test

    def test_it_has_what_was_asked_for(self, finished: tuple[Path, dict, dict]) -> None:
        _, inside, _ = finished
        assert (inside["slots"], inside["local"]) == (2, True)

    def test_nothing_listens_beyond_loopback(self, finished: tuple[Path, dict, dict]) -> None:
        _, inside, _ = finished
        assert len(inside["listening"]) >= 4
        assert [address for address in inside["listening"] if not is_loopback(address)] == []

    def test_a_worker_without_gpus_sees_none(self, finished: tuple[Path, dict, dict]) -> None:
        _, inside, _ = finished
        assert inside["worker"]["CUDA_VISIBLE_DEVICES"] == ""

    def test_a_worker_keeps_the_memory_that_a_model_frees(self, finished: tuple[Path, dict, dict]) -> None:
        _, inside, _ = finished
        assert inside["worker"].items() >= malloc_environment().items()

    def test_the_token_is_ours_and_private(self, finished: tuple[Path, dict, dict]) -> None:
        state_dir, inside, _ = finished
        token = state_dir / "ray" / "auth_token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert inside["worker"]["RAY_AUTH_MODE"] == "token"
        assert not (state_dir / ".ray").exists()  # Ray's own place for tokens, below HOME

    def test_a_session_inside_a_session_shares_it_and_leaves_it_running(
        self, finished: tuple[Path, dict, dict]
    ) -> None:
        _, inside, _ = finished
        assert inside["nested"] == [2, False]
        assert inside["still"]

    def test_nothing_is_left_when_it_ends(self, finished: tuple[Path, dict, dict]) -> None:
        _, inside, after = finished
        assert after["left"] == []
        assert [one for one in inside["started"] if ProcessId(*one).process()] == []
        assert not Path(inside["temp"]).exists()

    def test_the_end_is_not_held_up_by_the_process_that_waits_for_it(self, finished: tuple[Path, dict, dict]) -> None:
        _, _, after = finished
        assert not [command for command in after["awaited"] if "ray_reaper" in command]

    @pytest.mark.chaos
    def test_a_killed_driver_takes_its_ray_and_its_folder_along(self, tmp_path: Path) -> None:
        import json

        driver = subprocess.Popen(
            [sys.executable, "-c", SESSION, "wait"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            cwd=ROOT, env=_environment(tmp_path),
        )  # fmt: skip
        assert driver.stdout is not None
        inside = json.loads(driver.stdout.readline())
        members = [psutil.Process(pid) for pid, _ in inside["started"]]
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        driver.stdout.close()
        deadline = time.monotonic() + 30
        while alive := [one for one in members if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]:
            assert time.monotonic() < deadline, [one.cmdline()[:2] for one in alive]
            time.sleep(0.1)
        while Path(inside["temp"]).exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def test_ray_imported_too_early_is_refused(self, tmp_path: Path) -> None:
        program = """
            import ray
            from infra.errors import ServiceError
            from infra.ray_session import ray_session
            try:
                with ray_session(num_cpus=1):
                    print("started")
            except ServiceError as error:
                print("refused:", error.message)
        """
        answer = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False, cwd=ROOT,
            env=_environment(tmp_path),
        )  # fmt: skip
        assert answer.stdout.startswith("refused: ray was imported before")

    def test_a_cluster_is_joined_gets_our_packages_and_is_left_running(self, tmp_path: Path) -> None:
        """The head is a Ray that we start as somebody else would, on loopback; the driver knows its address only."""
        import json

        answer = subprocess.run(
            [sys.executable, "-c", HEAD, JOINING_DRIVER], capture_output=True, text=True, check=False, cwd=tmp_path,
            env=_environment(tmp_path),
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr[-3000:]
        found = json.loads(answer.stdout.splitlines()[-1])
        assert found["code"] == 0, found["error"]
        is_local, slots, file = found["joined"].split()[-3:]
        assert (is_local, slots) == ("False", "1")
        assert "runtime_resources/py_modules_files" in file  # shipped, not found on the path by luck
        assert found["still"] == 1.0


def _session(**changes: object) -> RaySession:
    known = {"address": "local", "is_local": True, "worker_slots": 2, "num_gpus": 0.0, "runtime_env": {}}
    return RaySession(**{**known, **changes})  # type: ignore[arg-type]


def test_lacking_gpus_are_named() -> None:
    with pytest.raises(ServiceError, match="this machine has none"):
        _session().require(num_workers=1, num_gpus=1)
    with pytest.raises(ServiceError, match=r"4 workers with 0.5 GPUs each need 2; the Ray at head:1 has 1"):
        _session(address="head:1", is_local=False, num_gpus=1.0).require(num_workers=4, num_gpus=0.5)
    _session(num_gpus=1.0).require(num_workers=2, num_gpus=0.5)


def test_lacking_processors_are_named() -> None:
    with pytest.raises(ServiceError, match="3 workers with 1 processors each need 3; this machine has 2"):
        _session().require(num_workers=3)
    _session().require(num_workers=2)


def test_a_gpu_worker_keeps_its_devices() -> None:
    assert _session().worker_environment(num_gpus=0) == {"CUDA_VISIBLE_DEVICES": ""}
    assert _session().worker_environment(num_gpus=0.5) == {}


def test_a_clusters_resources_are_its_own() -> None:
    with pytest.raises(UsageError), ray_session("auto", num_cpus=2):
        pass


def test_our_four_packages_are_found() -> None:
    assert [Path(folder).name for folder in package_folders()] == ["flows", "tasks", "modelkit", "infra"]
    assert all((Path(folder) / "__init__.py").exists() for folder in package_folders())


def test_only_folders_of_dead_drivers_are_swept(tmp_path: Path) -> None:
    mine, dead, other = (tmp_path / name for name in (f"vmray-{os.getpid()}-a", f"vmray-{2**22 - 1}-b", "elses"))
    for folder in (mine, dead, other):
        folder.mkdir()
    assert sweep_temp_folders(tmp_path) == [dead]
    assert mine.exists()
    assert other.exists()
