"""The doctor names what is wrong in plain words and never crashes."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from infra import doctor, services
from infra.doctor import Check
from infra.errors import ServiceError
from infra.standing import ServiceStatus
from tests.faults import Fault, FaultyS3


def test_installed_packages_are_held_against_the_projects_own_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    (fine,) = doctor._packages()
    assert fine.ok, fine.detail
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.165.0" if name == "fastapi" else real(name))
    (check,) = doctor._packages()
    assert check.ok is False
    assert "fastapi 0.165.0 is not" in check.detail
    assert "requirements.lock" in check.hint


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "duckdb":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    (check,) = doctor._packages()
    assert (check.ok, check.detail) == (False, "duckdb is missing")


def test_mixed_builds_of_torch_and_torchvision_are_explained() -> None:
    error = "RuntimeError: operator torchvision::nms does not exist"
    check = doctor._torch_check({"torch": "2.13.0+cpu", "torchvision": None, "error": error})
    assert check.ok is False
    assert "built for another torch than 2.13.0+cpu" in check.detail
    assert "build variant" in check.hint
    assert doctor._torch_check({"torch": "2", "torchvision": "0", "error": None}).ok is True
    assert "boom" in doctor._torch_check({"torch": "2", "torchvision": None, "error": "ImportError: boom"}).detail


def test_torch_and_torchvision_are_compared_by_what_they_say_of_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    torch, gpu = doctor._torch_versions()
    assert torch.ok is True and gpu.ok is None
    real = importlib.metadata.version
    for found, wrong in (("1.0.0", "1.0.0"), ("99.0+cpu", "99.0+cpu")):  # too old; of another build variant
        monkeypatch.setattr(importlib.metadata, "version", lambda name, v=found: v if name == "torch" else real(name))
        check, _ = doctor._torch_versions()
        assert check.ok is False and f"built for another torch than {wrong}" in check.detail


def test_gpus_are_listed_and_their_absence_is_no_fault() -> None:
    assert doctor._gpu_check({"gpus": ["H200, 139 GiB"], "cuda": "13.0"}) == Check("gpu", True, "H200, 139 GiB")
    none = doctor._gpu_check({"gpus": [], "cuda": None})
    assert none.ok is None
    assert "CPU build" in none.detail


@pytest.mark.timeout(900)
def test_this_machine_imports_torch_and_the_prefect_server() -> None:
    found = [*doctor._torch(), *doctor._prefect()]
    assert [(check.name, check.ok) for check in found if check.name != "gpu"] == [("torch", True), ("prefect", True)]


def test_a_prefect_server_that_cannot_be_imported_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(program: str, **environment: str) -> str:
        raise ChildProcessError("TypeError: Body() got an unexpected keyword argument 'min_items'")

    monkeypatch.setattr(doctor, "_ask", broken)
    (check,) = doctor._prefect()
    assert check.ok is False
    assert "min_items" in check.detail
    assert "fastapi" in check.hint


def test_a_ray_that_listens_widely_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = 'log\n{"version": "2.60", "addresses": ["::", "127.0.0.1"], "gpus": 0}'
    monkeypatch.setattr(doctor, "_ask", lambda program: answer)
    (check,) = doctor._ray()
    assert check.ok is False
    assert "::" in check.detail


def test_a_missing_compiler_is_worth_knowing_but_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (check,) = doctor._compiler()
    assert check.ok is None
    assert "g++" in check.hint


def test_an_old_seaweedfs_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "weed"
    for version, fit in (("version 30GB 4.16 linux amd64", False), ("version 30GB 4.48 linux amd64", True)):
        binary.write_text(f"#!/bin/sh\necho {version}\n")
        binary.chmod(0o755)
        monkeypatch.setattr(doctor, "weed_binary", lambda: binary)
        (check,) = doctor._seaweedfs()
        assert check.ok is fit, check.detail


def test_full_disks_and_memory_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    for free_gib, fit in ((100, True), (2, None), (0.1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free_gib: usage(0, 0, int(free * 2**30)))
        assert {check.ok for check in doctor._disk()} == {fit}
    memory = namedtuple("memory", "total available")
    for free_gib, fit in ((8, True), (2, None), (0.5, False)):
        found = memory(16 << 30, int(free_gib * 2**30))
        monkeypatch.setattr(psutil, "virtual_memory", lambda found=found: found)
        assert doctor._memory()[0].ok is fit


def test_a_service_that_listens_widely_or_is_silent_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def status(state: str) -> services.ServicesStatus:
        one = ServiceStatus("prefect", state, "http://127.0.0.1:1", psutil.Process().pid, {}, Path("log"), 0.0)
        return services.ServicesStatus(Path("state"), (one,))

    monkeypatch.setattr(services, "status", lambda: status("running"))
    monkeypatch.setattr(doctor, "listeners", lambda processes: [(1, "0.0.0.0", 4200)])
    (wide,) = doctor._services()
    assert wide.ok is False
    assert "prefect on 0.0.0.0:4200" in wide.detail
    monkeypatch.setattr(doctor, "listeners", lambda processes: [(1, "127.0.0.1", 4200)])
    assert doctor._services()[0].ok is True
    monkeypatch.setattr(services, "status", lambda: status("not answering"))
    assert doctor._services()[0].ok is False


def test_a_folder_as_output_is_tried(tmp_path: Path) -> None:
    (check,) = doctor._output(str(tmp_path))
    assert check.ok is True
    assert not list(tmp_path.iterdir()), "nothing is left of the trial"


@pytest.mark.s3
def test_an_output_that_ignores_conditions_is_a_fault(faulty_s3: FaultyS3, s3_bucket: str) -> None:
    assert doctor._output(s3_bucket)[0].ok is True
    faulty_s3.add(Fault("ignore_conditions", times=None))
    (check,) = doctor._output(s3_bucket)
    assert check.ok is False
    assert "ignores conditional creates" in check.detail


@pytest.mark.s3
def test_wrong_credentials_for_an_output_are_a_finding_without_the_secret(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-secret")
    (check,) = doctor._guarded("output", lambda: doctor._output(s3_bucket))
    assert check.ok is False
    assert "wrong-and-secret" not in repr(check)
    assert "credentials" in check.hint


def test_a_check_that_breaks_is_a_finding_too() -> None:
    def breaks() -> list[Check]:
        raise KeyError("nothing expected this")

    def refuses() -> list[Check]:
        raise ServiceError("no weed here", hint="install it")

    assert doctor._guarded("x", breaks)[0].ok is False
    assert doctor._guarded("x", refuses) == [Check("x", False, "no weed here", "install it")]


def test_programs_run_in_a_python_of_their_own() -> None:
    assert doctor._ask("import sys; print(sys.executable)").strip() == sys.executable
    with pytest.raises(ChildProcessError, match="ValueError: boom"):
        doctor._ask("raise ValueError('boom')")
