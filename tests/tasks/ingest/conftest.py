"""Property tests here are the same on every run, and a busy machine is no failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("ingest", deadline=None, derandomize=True)
settings.load_profile("ingest")
