"""Figures in MLflow, through its own client: ``--log mlflow:URI``, where URI is a tracking server or a database.

Who asks, and the password, come from MLflow's own environment variables (``MLFLOW_TRACKING_USERNAME``, ...), never from
the URI. The experiment is ``MLFLOW_EXPERIMENT_NAME``, or ``visionmill``.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tasks.training.run_log import FINISHED, LoggedRun, Logger, absolute

_FILE = "sqlite:///"


def settled(uri: str) -> str:
    """A folder or a file of a database as seen from this process's folder; servers stay as they are."""
    if uri.startswith(_FILE):
        return _FILE + absolute(uri.removeprefix(_FILE))
    return uri if uri.startswith("databricks") else absolute(uri)


LOGGER = Logger("mlflow", "URI", f"{__name__}:open_run", "mlflow", "mlflow", settled)
_TAG = "visionmill.fingerprint"
_LONGEST = 500  # characters of a parameter's value that every version of MLflow takes
_NOT_ALLOWED = re.compile(r"[^\w\-. :/]")


class MlflowRun:
    """One run of an experiment. A training that goes on is looked up by its fingerprint and goes on there, too."""

    def __init__(self, uri: str, run: LoggedRun) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "visionmill"))
        found = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run.fingerprint}'", max_results=1)
        self._known = self._last_step(found[0].info.run_id) if found else 0
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {_TAG: run.fingerprint, "visionmill.output": run.output_uri}
        tags |= {f"visionmill.{role}": name for role, name in run.sets.items()}
        self._id = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        for name, value in _flat(run.recipe):
            self._client.log_param(self._id, name, value)

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if found is None else found.experiment_id

    def _last_step(self, run_id: str) -> int:
        return max((each.step for each in self._client.get_metric_history(run_id, "train/loss")), default=0)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """One batch. Steps that an earlier process has logged beyond its checkpoint come out the same: left out.

        Its last one is logged once more, for it may have ended between the step and the look that follows.
        """
        from mlflow.entities import Metric

        if step < self._known:
            return
        now_ms = int(time.time() * 1000)
        metrics = [Metric(_NOT_ALLOWED.sub("_", name), value, now_ms, step) for name, value in figures.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def end(self, state: str) -> None:
        """Finished or killed, in MLflow's words."""
        self._client.set_terminated(self._id, "FINISHED" if state == FINISHED else "KILLED")


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """A recipe's values by dotted path; lists as JSON, cut to what MLflow takes."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif path:
        text = value if isinstance(value, str) else json.dumps(value)
        yield _NOT_ALLOWED.sub("_", path), text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def open_run(where: str, run: LoggedRun) -> MlflowRun:
    """The run on a tracking server or in a database."""
    return MlflowRun(where, run)
