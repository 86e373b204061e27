"""What Prefect says of a run: to its server and to the terminal, without secrets, and no traceback to a person."""

from __future__ import annotations

import logging

from infra.redaction import protect_logging

RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


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
