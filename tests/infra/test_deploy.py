"""Deployment files: parts that exist, settings that Prefect knows, ports on loopback, no secret in any file."""

from __future__ import annotations

import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

import infra
from infra import prefect_server
from infra.prefect_server import ZOMBIE_AUTOMATION, client_environment, main, request
from infra.standing import Site

DEPLOY = Path(infra.__file__).parent / "deploy"
ROOT = DEPLOY.parent.parent


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def kuberay() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text()))


def test_compose_publishes_on_loopback_only(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert published
    assert all(str(port).startswith("127.0.0.1:") for port in published)


def test_compose_builds_from_files_that_exist(compose: dict[str, Any]) -> None:
    builds = [service["build"] for service in compose["services"].values() if "build" in service]
    assert {service["image"] for service in compose["services"].values() if "build" in service} == {"visionmill"}
    for build in builds:
        context = (DEPLOY / build["context"]).resolve()
        assert context == ROOT
        assert (context / build["dockerfile"]).exists()
    for copied in re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE):
        assert all((ROOT / name).exists() for name in copied.split()), copied


def test_every_setting_for_prefect_is_one_that_prefect_knows(compose: dict[str, Any]) -> None:
    """An unknown variable is ignored in silence, so a typing error would go unnoticed for ever."""
    from prefect.settings.legacy import _get_valid_setting_names
    from prefect.settings.models.root import Settings

    known = _get_valid_setting_names(Settings) | {"PREFECT__SERVER_FINAL"}
    site = Site(Path(), {"api": 1}, {"password": "x"})
    _, server = prefect_server.PrefectServer().command(site)
    used = {*client_environment(site), *server, "PREFECT_WORKER_WEBSERVER_HOST"}
    for service in compose["services"].values():
        used |= set(service.get("environment", ()))
    assert {name for name in used if name.startswith("PREFECT_")} <= known


def test_no_file_holds_a_secret(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if "PASSWORD" in name or "AUTH" in name:
                assert str(value).startswith("${"), name
                assert ":?" in value, f"{name} must be demanded"
    for line in (DEPLOY / ".env.example").read_text().splitlines():
        assert line.startswith("#") or not line or line.endswith("="), line
    ignored = (DEPLOY / ".gitignore").read_text().split()
    assert {".env", "storage.env"} <= set(ignored)


def test_the_ray_cluster_asks_for_tokens_and_its_head_does_no_work(kuberay: list[dict[str, Any]]) -> None:
    job, policy = kuberay
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == metadata.version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert policy["kind"] == "NetworkPolicy"
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        for container in group["template"]["spec"]["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert "env" not in container or all("value" not in one for one in container["env"])


def test_the_jobs_command_is_one_that_we_understand(kuberay: list[dict[str, Any]]) -> None:
    from typer.testing import CliRunner

    from flows.cli.app import make_app

    words = kuberay[0]["spec"]["entrypoint"].split()
    assert words[0] == "visionmill"
    options = [word for word in words[2:] if word.startswith("--")]
    shown = CliRunner().invoke(make_app(), [words[1], "--help"], env={"COLUMNS": "200"}).output
    assert options
    assert all(option in shown for option in options)


@pytest.mark.prefect
@pytest.mark.timeout(900)
def test_the_automation_is_installed_on_the_server_that_the_environment_names(
    prefect_api: str, services_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from infra import services

    site = services.ensure_prefect_site(services_dir)
    found = request(site, "POST", "/automations/filter", {"automations": {"name": {"any_": [ZOMBIE_AUTOMATION]}}})
    for automation in found:
        request(site, "DELETE", f"/automations/{automation['id']}")
    assert main() == 0
    assert capsys.readouterr().err.startswith("installed")
    assert main() == 0
    assert capsys.readouterr().err.startswith("already installed")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "visionmill:wrong-password")
    assert main() == 1
    assert "wrong-password" not in capsys.readouterr().err
    monkeypatch.delenv("PREFECT_API_URL")
    assert main() == 2
    assert "PREFECT_API_URL" not in os.environ
