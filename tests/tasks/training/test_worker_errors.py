"""What Ray's workers raise comes out as it is, through the layers that Ray Train puts around it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from infra.errors import DatasetError, ServiceError
from infra.store import open_store
from tasks.training.job import prepare_training
from tasks.training.run import _fit, _train_worker
from tests.tasks.training.scenes import recipe
from tests.tasks.training.test_runs import caches, job_in

__all__ = ["caches"]  # the fixture


def broken_job(folder: Path, workers: int) -> dict[str, Any]:
    """A job whose images are none."""
    job = job_in(str(folder), recipe())
    store = open_store(str(folder))
    for info in list(store.list("images/")):
        store.put(info.key, b"no picture")
    again = prepare_training(str(folder), job.recipe, job.labelled_set, num_workers=workers)
    return {"job": again.to_json(), "place": "words of this test", "logs": []}


@pytest.fixture
def worker_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make this process a Ray Train worker of a group of so many."""

    def become(count: int) -> None:
        context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: count)
        monkeypatch.setattr("ray.train.get_context", lambda: context)

    return become


@pytest.fixture
def group_error() -> Any:
    """Ray's class, imported late: at collection, Ray would miss the switches that local sessions set."""
    from ray.train import WorkerGroupError

    return WorkerGroupError


def test_a_lone_worker_hands_over_what_no_retry_can_help(worker_of: Any, tmp_path: Path) -> None:
    worker_of(1)
    error = _train_worker(broken_job(tmp_path, 1))
    assert isinstance(error, DatasetError), "raising it, Ray would start the worker again"
    with pytest.raises(DatasetError, match="cannot be read"):
        _fit(lambda: SimpleNamespace(return_value=error))


def test_one_of_several_raises_it_or_the_others_would_wait(worker_of: Any, group_error: Any, tmp_path: Path) -> None:
    worker_of(2)
    with pytest.raises(DatasetError) as caught:
        _train_worker(broken_job(tmp_path, 2))

    def fit() -> NoReturn:
        raise group_error("2 workers failed", {0: caught.value})

    with pytest.raises(DatasetError, match="cannot be read"):
        _fit(fit)


def test_a_death_without_words_says_what_to_do(group_error: Any) -> None:
    def fit() -> NoReturn:
        raise group_error("a worker died", {0: RuntimeError("the actor is gone")})

    with pytest.raises(ServiceError, match="a worker died") as caught:
        _fit(fit)
    assert "run the same command again" in str(caught.value.hint)
