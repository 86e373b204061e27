"""A flow is made of steps, one call each; here is decided whether Prefect records them.

A flow has five to eight steps and never one per shard: Prefect says *what* runs and *when*, progress inside a step
comes from commits. Steps keep no Prefect results: what they leave lies in the output; running a flow again finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from flows.recording import without_secrets
from infra.telling import tell

P = ParamSpec("P")
T = TypeVar("T")


class Steps(Protocol):
    """Carries out steps of a flow. A type checker compares what is given with the function's own signature."""

    def __call__(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function`` as the step ``name`` and return what it returns; exceptions pass through."""
        ...


def plain_steps(name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """No server, no record: for tests, notebooks and ``--no-prefect``."""
    tell(name)
    return function(*args, **kwargs)


def orchestrated_steps(name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """A Prefect task run per step. Inputs are not hashed and results not stored: they may be large."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    tell(name)

    @task(name=name, task_run_name=name, cache_policy=NO_CACHE, persist_result=False)
    def recorded() -> T:
        with without_secrets():
            return function(*args, **kwargs)

    return recorded()
