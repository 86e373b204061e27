"""Why a worker died or hung, and what it was busy with: read from what its process left on its machine."""

from __future__ import annotations

from pathlib import Path

from tasks.engine.dispatch import Loss
from tasks.engine.hangs import Hang
from tasks.engine.heartbeat import Heartbeat, LastWords, read_heartbeat, read_last_words

Remains = tuple[Heartbeat | None, LastWords | None]

_SIGNALS = {
    "Aborted": "SIGABRT",
    "Segmentation fault": "SIGSEGV",
    "Bus error": "SIGBUS",
    "Illegal instruction": "SIGILL",
    "Floating-point exception": "SIGFPE",
}
_SILENT = "died without a word (SIGKILL, as the system sends when memory runs out, or an exit from within)"


def read_remains(folder: str) -> Remains:
    """Heartbeat and last words of a worker of this machine."""
    return read_heartbeat(Path(folder)), read_last_words(Path(folder))


def loss_of_dead(remains: Remains, words: str = "") -> Loss:
    """How a dead worker was lost.

    Args:
        remains: what it left; may be nothing, when its machine is gone.
        words: what is known from elsewhere ("its node died"); used when there are no last words.
    """
    beat, last_words = remains
    working = sorted(beat.working if beat is not None else (), key=lambda w: w.since_s, reverse=True)
    exact = [w for w in working if last_words is not None and w.thread == last_words.thread and w.marks]
    ordered = exact + [w for w in working if w not in exact]
    suspects = tuple(mark for w in ordered for mark in w.marks)
    if last_words is not None:
        name = _SIGNALS.get(last_words.cause)
        cause = f"died of {name} ({last_words.cause.lower()})" if name else f"died: {last_words.cause}"
    else:
        cause = words or _SILENT
    return Loss(
        cause=cause,
        suspects=suspects,
        stage=ordered[0].stage if ordered else "",
        exact=bool(exact) and len(exact[0].marks) == 1,
    )


def loss_of_hung(hang: Hang) -> Loss:
    """How a worker is lost that was ended because it hangs: what the stuck thread worked on is the suspect."""
    return Loss(hang.words, hung=True, suspects=hang.marks, stage=hang.stage, exact=len(hang.marks) == 1)
