"""Words of a Ray worker about its work, brought home to the process that started it.

They go through Ray's own key-value store: no further process, and what is lost is told again a second later.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from infra.telling import Word, listening, tell

_EVERY_S = 1.0
_NAMESPACE = b"visionmill-words"

logger = logging.getLogger(__name__)


@contextmanager
def sending_words(place: str) -> Iterator[None]:
    """In a worker: what it tells is put in a place of the cluster, once a second at most."""
    from ray.experimental.internal_kv import _internal_kv_put

    last_s = 0.0

    def send(word: Word) -> None:
        nonlocal last_s
        if time.monotonic() - last_s < _EVERY_S:
            return
        last_s = time.monotonic()
        try:
            _internal_kv_put(place.encode(), json.dumps(asdict(word)).encode(), overwrite=True, namespace=_NAMESPACE)
        except Exception as error:  # noqa: BLE001 - progress must not cost the work its end
            logger.debug("progress was not sent: %s", error)

    with listening(send):
        yield


@contextmanager
def words_from(place: str) -> Iterator[None]:
    """At home, while connected to the same Ray: tell what workers put in a place."""
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get

    stop = threading.Event()

    def fetch() -> None:
        last: bytes | None = None
        while not stop.wait(_EVERY_S):
            try:
                data = _internal_kv_get(place.encode(), namespace=_NAMESPACE)
            except Exception as error:  # noqa: BLE001 - as above; that Ray is gone is said by those who wait for it
                logger.debug("progress was not fetched: %s", error)
                continue
            if data is not None and data != last:
                tell(**json.loads(data))
            last = data

    thread = threading.Thread(target=fetch, name="words", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5.0)
        try:
            _internal_kv_del(place.encode(), namespace=_NAMESPACE)
        except Exception as error:  # noqa: BLE001 - it is small, and gone with the cluster
            logger.debug("progress was not removed: %s", error)
