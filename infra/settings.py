"""Everything that can be set from outside, in one place: environment variables with the prefix ``VISIONMILL_``."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.errors import UsageError
from infra.problems import problems_of


def _xdg(variable: str, fallback: str) -> Path:
    base = os.environ.get(variable, "")
    # The XDG specification says to ignore relative values.
    return Path(base) if os.path.isabs(base) else Path.home() / fallback


def _default_state_dir() -> Path:
    return _xdg("XDG_STATE_HOME", ".local/state") / "visionmill"


def _default_cache_dir() -> Path:
    return _xdg("XDG_CACHE_HOME", ".cache") / "visionmill"


class Settings(BaseSettings):
    """Settings of this process, read from the environment when made. No setting is a secret."""

    model_config = SettingsConfigDict(env_prefix="VISIONMILL_", extra="ignore", frozen=True)

    state_dir: Path = Field(
        default_factory=_default_state_dir, description="Local services: data, logs, ports, generated secrets."
    )
    cache_dir: Path = Field(
        default_factory=_default_cache_dir, description="Can be deleted at any time: fetched weights, compiled models."
    )
    service_start_timeout_s: float = Field(
        default=300.0, gt=0, description="How long a living local service may take until it answers."
    )
    service_stop_timeout_s: float = Field(
        default=10.0, gt=0, description="How long a local service may take to end before it is killed."
    )
    store_attempts: int = Field(default=7, ge=1, description="Tries of one S3 request before it counts as failed.")
    store_first_delay_s: float = Field(default=0.1, ge=0, description="First wait of the exponential backoff.")
    ray_object_store_bytes: int = Field(
        default=100 << 20, ge=75 << 20, description="Shared memory of a local Ray; descriptors and receipts are small."
    )
    work_pool: str = Field(default="visionmill", min_length=1, description="Name of the Prefect process work pool.")

    @field_validator("state_dir", "cache_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return Path(os.path.abspath(value.expanduser()))


def settings() -> Settings:
    """The settings as the environment has them now (cheap; not cached, so that tests and notebooks can change them)."""
    try:
        return Settings()
    except ValidationError as error:
        names = {name: f"VISIONMILL_{name.upper()}" for name in Settings.model_fields}
        raise UsageError(
            problems_of(error, Settings, lambda name, _: names[name]), hint="mend the environment"
        ) from None
