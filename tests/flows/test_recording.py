"""What is recorded of a run: no secret reaches the server, no traceback the terminal."""

from __future__ import annotations

import io
import logging
import traceback
from collections.abc import Iterator

import pytest

from flows.recording import (
    RUN_LOGGERS,
    keep_secrets_out_of_run_logs,
    keep_tracebacks_off_the_terminal,
    without_secrets,
)
from infra.errors import AccessDenied, VisionmillError

SECRET = "a-secret-of-the-environment"


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """(terminal, server): handlers where Prefect puts its own, for the time of a test."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    terminal, server = io.StringIO(), io.StringIO()
    root, run = logging.getLogger(), logging.getLogger(RUN_LOGGERS[0])
    handlers = [(root, logging.StreamHandler(terminal)), (run, logging.StreamHandler(server))]
    for logger, handler in handlers:
        logger.addHandler(handler)
    yield terminal, server
    for logger, handler in handlers:
        logger.removeHandler(handler)


def test_a_failure_is_one_line_on_the_terminal_and_whole_on_the_server_without_secrets(
    streams: tuple[io.StringIO, io.StringIO],
) -> None:
    keep_secrets_out_of_run_logs()
    keep_tracebacks_off_the_terminal()
    logger = logging.getLogger(f"{RUN_LOGGERS[0]}.child")
    try:
        raise ValueError(f"the server said {SECRET}")
    except ValueError:
        logger.exception("Encountered exception during execution")
    logger.error("Finished in state Failed(%r)", SECRET)
    terminal, server = (stream.getvalue() for stream in streams)
    assert terminal.splitlines() == ["Finished in state Failed('***')"]
    assert "Traceback" in server and "ValueError: the server said ***" in server
    assert SECRET not in server


def test_an_error_that_would_tell_a_secret_says_the_same_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(VisionmillError, match=r"^KeyError: .*\*\*\*") as foreign, without_secrets():
        raise KeyError(SECRET)
    with pytest.raises(AccessDenied, match=r"^\*\*\* was refused$") as own, without_secrets():
        raise AccessDenied(f"{SECRET} was refused", hint=f"Do not use {SECRET}.")
    assert own.value.hint == "Do not use ***."
    for caught in (foreign, own):
        assert SECRET not in "".join(traceback.format_exception(caught.value)), "nor does its printed traceback tell it"


def test_an_error_without_a_secret_passes_as_it_is() -> None:
    error = ValueError("nothing to hide")
    with pytest.raises(ValueError) as caught, without_secrets():
        raise error
    assert caught.value is error
