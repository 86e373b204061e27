"""What Prefect records of a run, on its server and the terminal: no secret, and no traceback for a person to read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from infra.errors import VisionmillError
from infra.redaction import protect_logging, redact
from infra.services import ensure_prefect
from infra.telling import tell

RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


def prepare_recording() -> None:
    """For a run by hand: the standing server is there, and the command alone tells a person of an error."""
    tell("starting Prefect's server, or finding it")
    ensure_prefect()
    keep_tracebacks_off_the_terminal()


@contextmanager
def without_secrets() -> Iterator[None]:
    """Around what Prefect records: neither its logs nor the messages of its states hold a secret.

    Raises:
        VisionmillError: in place of any error whose message holds a secret; it says the same without it.
    """
    keep_secrets_out_of_run_logs()
    try:
        yield
    except Exception as error:
        clean = redact(str(error))
        if clean == str(error):
            raise
        told = (
            type(error)(clean, hint=redact(error.hint))
            if isinstance(error, VisionmillError)
            else VisionmillError(f"{type(error).__name__}: {clean}")
        )
        raise told.with_traceback(error.__traceback__) from None


class NoTracebacks(logging.Filter):
    """Lets a run's records pass unless they carry a traceback: the state that follows says the same in one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and record.name.startswith(RUN_LOGGERS))


def keep_tracebacks_off_the_terminal() -> None:
    """For runs by hand: the command prints the error itself. The server's log of the run keeps the traceback."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(one, NoTracebacks) for one in handler.filters):
            handler.addFilter(NoTracebacks())


def keep_secrets_out_of_run_logs() -> None:
    """Redact what reaches the server's log of a run, and the terminal or the worker's log."""
    for name in (None, *RUN_LOGGERS):
        protect_logging(logging.getLogger(name))
