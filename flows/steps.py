"""One leg of the journey is one call; here is decided whether Prefect records it.

A flow has five to eight legs and never one per shard: Prefect says *what* runs and *when*, progress inside a leg comes
from commits. Legs keep no Prefect results: what they leave lies in the output itself; running a flow again finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from flows.recording import without_secrets

T = TypeVar("T")


class Legs(Protocol):
    """Calls a leg by name."""

    def __call__(self, name: str, function: Callable[..., T], *args: object, **kwargs: object) -> T:
        """Run ``function`` and return what it returns; exceptions pass through."""


def plain_legs(name: str, function: Callable[..., T], *args: object, **kwargs: object) -> T:
    """No server, no record: for tests, notebooks and ``--no-prefect``."""
    return function(*args, **kwargs)


def orchestrated_legs(name: str, function: Callable[..., T], *args: object, **kwargs: object) -> T:
    """A Prefect task run per leg. Inputs are not hashed and results not stored: they may be large."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    @task(name=name, task_run_name=name, cache_policy=NO_CACHE, persist_result=False)
    def recorded() -> T:
        with without_secrets():
            return function(*args, **kwargs)

    return recorded()
