"""Find out by trying what a store honours: some accept conditional headers and ignore them."""

from __future__ import annotations

import uuid

from infra.errors import AccessDenied, BucketMissing, Conflict, NoSpaceLeft, ObjectGone, StoreError, StoreUnavailable
from infra.store_types import Store, StoreCapabilities

_FATAL = (AccessDenied, BucketMissing, NoSpaceLeft, StoreUnavailable)


def probe_store(store: Store, prefix: str) -> StoreCapabilities:
    """Two creates and a stale swap on one scratch key, which is removed afterwards.

    Raises:
        StoreError: the store cannot be written at all (credentials, bucket, space, network); nothing is concluded then.
    """
    key = f"{prefix}{uuid.uuid4().hex}"
    try:
        create = _honours_create(store, key)
        stale = store.put(key, b"first")
        store.put(key, b"second")
        swap = _honours_swap(store, key, stale)
    finally:
        _remove(store, key)
    return StoreCapabilities(conditional_create=create, compare_and_swap=swap)


def _honours_create(store: Store, key: str) -> bool:
    try:
        first = store.put_if_absent(key, b"one", token=b"one")
        second = store.put_if_absent(key, b"two", token=b"two")
    except _FATAL:
        raise
    except StoreError:
        return False  # the request with the condition was rejected as such
    return first and not second


def _honours_swap(store: Store, key: str, stale_etag: str) -> bool:
    try:
        store.compare_and_swap(key, b"third", stale_etag)
    except Conflict:
        return True
    except _FATAL:
        raise
    except StoreError:
        return False
    return False


def _remove(store: Store, key: str) -> None:
    try:
        store.delete(key)
    except ObjectGone:
        return
    except StoreError:
        # The probe's answer, or the error on its way, matters more than a few bytes of litter.
        return
