"""What hears a training while it goes on: the protocol with a toy logger, the page, TensorBoard and MLflow for real."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from infra.by_name import resolve
from infra.errors import UsageError
from infra.store import open_store
from infra.telling import Word, listening
from modelkit.training.processes import Rank
from tasks.report import training_page
from tasks.report.training_page import CURVES, render
from tasks.training import run_log
from tasks.training.job import TrainingJob
from tasks.training.layout import curves_key
from tasks.training.run import train_here
from tasks.training.run_log import LoggedRun, Logger, LogTarget, log_target
from tasks.training.work import train_share
from tests.tasks.training.test_runs import caches
from tests.tasks.training.test_validation import job_in

__all__ = ["caches"]  # the fixture

TOY = LogTarget(f"{__name__}:open_toy", "somewhere", "toy")
RUN = LoggedRun("signs", "0123456789abcdef", 100, "/data/out", recipe={"batch_size": 2})
heard: list[Toy] = []


class Toy:
    """Remembers all that it is told; on request it fails at a step."""

    def __init__(self, where: str, run: LoggedRun) -> None:
        self.where, self.run, self.state = where, run, ""
        self.points: list[tuple[int, dict[str, float]]] = []
        heard.append(self)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if self.where == f"fails at {step}":
            raise OSError("the place is gone")
        self.points.append((step, dict(figures)))

    def end(self, state: str) -> None:
        self.state = state

    def curve(self, name: str) -> list[tuple[int, float]]:
        return [(step, figures[name]) for step, figures in self.points if name in figures]


def open_toy(where: str, run: LoggedRun) -> Toy:
    if where == "nowhere":
        raise ConnectionError("nobody listens")
    return Toy(where, run)


@pytest.fixture(autouse=True)
def quiet() -> None:
    heard.clear()


def page_of(job: TrainingJob) -> str:
    return open_store(job.output_uri).get(curves_key(job.fingerprint)).decode()


def test_a_logger_hears_losses_rate_and_held_out_figures_by_class_of_every_process_and_how_it_ended(
    tmp_path: Path,
) -> None:
    job = job_in(tmp_path)
    train_share(job, Rank(), until=3, logs=[TOY])
    _, record = train_here(job, [TOY])
    first, second = heard
    assert (first.where, first.state, second.state) == ("somewhere", "stopped", "finished")
    assert (first.run.begins_at, second.run.begins_at, second.run.steps) == (0, 3, 8)
    assert second.run.history and [look["step"] for look in second.run.looks] == [2]
    rates = first.curve("train/rate") + second.curve("train/rate")
    assert rates == [(step, pytest.approx(job.recipe.loop.rate_at(step - 1))) for step in range(1, 9)]
    losses = dict(first.curve("train/loss") + second.curve("train/loss"))
    assert losses[4] == pytest.approx(record.lineage["history"][3]["loss_semantic"], abs=1e-5)
    looks = record.lineage["validation"]["looks"]
    seen = first.curve("validation/main") + second.curve("validation/main")
    assert seen == [(look["step"], look["main"]) for look in looks]
    by_class = {name for _, figures in second.points for name in figures if name.startswith("validation/by_class/")}
    known = {name for look in looks for name, value in look["by_class"].items() if value >= 0}
    assert known and by_class <= {f"validation/by_class/{name}" for name in known}


def test_a_place_that_goes_away_costs_its_points_and_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri, _ = train_here(job_in(tmp_path), [LogTarget(TOY.opener, "fails at 5", "toy"), TOY])
    assert uri and [step for step, _ in heard[0].curve("train/loss")] == [1, 2, 3, 4, 6, 7, 8]
    assert len(heard[1].curve("train/loss")) == 8
    assert "toy lost 1 points: OSError: the place is gone" in caplog.text


def test_a_place_that_cannot_be_opened_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    with pytest.raises(UsageError, match="cannot log to toy:nowhere: ConnectionError: nobody listens"):
        train_here(job, [LogTarget(TOY.opener, "nowhere", "toy")])
    assert not list(open_store(str(tmp_path)).list(f"training/runs/{job.fingerprint}/checkpoint"))


def test_people_hear_step_loss_rate_speed_and_the_time_left(tmp_path: Path) -> None:
    words: list[Word] = []
    with listening(words.append):
        train_here(job_in(tmp_path))
    trained = [word for word in words if word.doing == "training"]
    assert [(word.done, word.total, word.unit) for word in trained] == [(step, 8, "steps") for step in range(1, 9)]
    shape = r"loss [\d.e+-]+, rate [\d.e+-]+, [\d.]+ images/s(, held out \d\.\d{3})?, .* left"
    assert all(re.fullmatch(shape, word.detail) for word in trained), trained
    assert "held out" in trained[-1].detail


def test_the_page_is_there_while_the_training_goes_on_and_whole_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_page, "WRITE_EVERY_S", 0.0)
    job, pages = job_in(tmp_path), []
    monkeypatch.setattr(
        training_page,
        "render",
        lambda *args: pages.append((args[2], args[3])) or render(*args),  # type: ignore[func-returns-value]
    )
    train_share(job, Rank(), until=3, logs=[CURVES])
    stopped = page_of(job)
    assert pages[0] == (0, "running") and (3, "running") in pages and pages[-1] == (3, "stopped")
    assert "It was stopped" in stopped and 'http-equiv="refresh"' not in stopped
    train_here(job, [CURVES])
    whole = page_of(job)
    assert pages[-1] == (8, "finished")
    for title in ("Loss, the sum", "On held-out labels", "learning rate", "loss_semantic", "background"):
        assert f'aria-label="{title} by step' in whole, title
    points = re.findall(r'<polyline class="line" points="([^"]*)"', whole)
    assert len(points[0].split()) == 8, "also the steps before the stop"


def test_the_page_loads_nothing_escapes_what_it_shows_and_reloads_itself_while_it_grows() -> None:
    curves = {"train/loss": [(1, 2.0), (2, 1.0)], "validation/by_class/<b>road": [(2, 0.5)]}
    run = LoggedRun("<script>", "f" * 16, 10, "/o", recipe={"name": "</code><img src=x>"})
    page = render(run, curves, 2, "running", 8.0)
    assert "<script>" not in page and "<img" not in page and "&lt;b&gt;road" in page
    assert 'http-equiv="refresh"' in page and "8 s left" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "url(" not in page
    assert "default-src 'none'" in page
    assert 'http-equiv="refresh"' not in render(run, curves, 10, "finished", None)


def test_loggers_are_found_by_name_and_say_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"mlflow", "tensorboard"} <= run_log.loggers().keys()
    found = {
        "toy": Logger("toy", "PLACE", TOY.opener),
        "absent": Logger("absent", "X", "a:b", "no_such_package", "abs"),
    }
    monkeypatch.setattr(run_log, "loggers", lambda: found)
    assert log_target("toy:a:b") == LogTarget(TOY.opener, "a:b", "toy")
    for spec, message, hint in (
        ("tou:x", "there is no logger 'tou'", "known: toy:PLACE"),
        ("toy", "does not say where to", "write toy:PLACE"),
        ("absent:x", "needs the package 'no_such_package'", r"pip install 'visionmill\[abs\]'"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            log_target(spec)
        assert re.search(hint, error.value.hint)


def test_workers_in_other_folders_get_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log.importlib.util, "find_spec", lambda name: name)
    monkeypatch.chdir(tmp_path)
    for spec, where in (
        ("tensorboard:logs/a", f"{tmp_path}/logs/a"),
        ("tensorboard:s3://bucket/a", "s3://bucket/a"),
        ("mlflow:sqlite:///a.db", f"sqlite:///{tmp_path}/a.db"),
        ("mlflow:sqlite:////a.db", "sqlite:////a.db"),
        ("mlflow:http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ):
        assert log_target(spec).where == where


def test_tensorboard_reads_back_what_was_logged_and_hides_what_a_stopped_run_did_twice(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    open_run = resolve(log_target(f"tensorboard:{tmp_path}").opener)
    for begins, steps in ((0, (1, 2, 3, 4, 5)), (3, (4, 5, 6))):
        log = open_run(str(tmp_path), LoggedRun("signs", "f" * 16, 6, "/o", begins))
        for step in steps:
            log.log(step, {"train/loss": 1 / step + begins, "validation/by_class/road, wet": 0.5})
        log.end("finished")
    events = EventAccumulator(str(tmp_path / f"signs-{'f' * 16}")).Reload()
    assert {"train/loss", "validation/by_class/road, wet"} <= set(events.Tags()["scalars"])
    losses = [(each.step, each.value) for each in events.Scalars("train/loss")]
    assert losses == [(step, pytest.approx(1 / step + 3 * (step > 3))) for step in range(1, 7)]


def test_mlflow_reads_back_one_run_of_a_training_that_was_stopped_and_went_on(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    open_run = resolve(log_target(f"mlflow:{uri}").opener)
    recipe = {"batch_size": 2, "loop": {"steps": 6}, "classes": [[1, "x" * 600, True]]}
    for begins, steps, state in ((0, (1, 2, 3, 4, 5), "stopped"), (3, (4, 5, 6), "finished")):
        log = open_run(uri, LoggedRun("signs", "f" * 16, 6, "/o", begins, recipe, {"labelled_set": "abc"}))
        for step in steps:
            log.log(step, {"train/loss": 1 / step, "validation/by_class/road (wet)": 0.5})
        log.end(state)
    client = MlflowClient(tracking_uri=uri)
    [run] = client.search_runs([client.get_experiment_by_name("visionmill").experiment_id])
    assert (run.info.run_name, run.info.status) == ("signs", "FINISHED")
    assert run.data.params["batch_size"] == "2" and run.data.params["loop.steps"] == "6"
    assert run.data.tags["visionmill.labelled_set"] == "abc"
    losses = {each.step: each.value for each in client.get_metric_history(run.info.run_id, "train/loss")}
    assert losses == {step: pytest.approx(1 / step) for step in range(1, 7)}
    assert run.data.metrics["validation/by_class/road _wet_"] == 0.5
