"""Settings come from VISIONMILL_ variables, paths are absolute, nonsense is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import UsageError
from infra.settings import settings


def test_the_state_lies_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VISIONMILL_STATE_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert settings().state_dir == tmp_path / "visionmill"
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert settings().state_dir == tmp_path / "home" / ".local/state/visionmill"


def test_variables_override_and_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VISIONMILL_STATE_DIR", "here/../there")
    monkeypatch.setenv("VISIONMILL_STORE_ATTEMPTS", "3")
    assert settings().state_dir == tmp_path / "there"
    assert settings().store_attempts == 3


@pytest.mark.parametrize(
    ("name", "value"), [("STORE_ATTEMPTS", "0"), ("RAY_OBJECT_STORE_BYTES", "1000"), ("WORK_POOL", "")]
)
def test_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"VISIONMILL_{name}", value)
    with pytest.raises(UsageError, match=f"VISIONMILL_{name}: must "):
        settings()
