"""The error tree. Every message says what was wrong, where, and (in ``hint``) what to do about it.

    VisionmillError                    exit code 1
    ├── UsageError                     exit code 2: the command or its parameters make no sense
    ├── StoreError                     object storage, or a folder
    │   ├── BucketMissing
    │   ├── AccessDenied               wrong or missing credentials, or a policy
    │   ├── NoSpaceLeft
    │   ├── ObjectGone                 404 for one key
    │   ├── ObjectChanged              the object is no longer the one that was listed (etag mismatch)
    │   ├── Conflict                   a compare-and-swap lost
    │   ├── StoreUnavailable           transient: 500/503, time-outs, torn answers, refused connections
    │   └── StoreOutage                the whole store did not answer for as long as it was waited for
    ├── ServiceError                   a local service (Prefect, SeaweedFS, Ray) did not come up or went away
    ├── DatasetError                   the source as a whole cannot be read
    ├── VersionMismatch                the output holds another version (model, parameters or schema)
    ├── LeaseHeld                      another driver writes this output
    ├── PromotionRefused               the champion stays: the candidate may not replace it, or not any more
    └── CircuitOpen                    too many failures in a row: credentials or model are broken, not the data

Errors of a single item never travel as exceptions beyond its worker: they become rows (``tasks.records.ItemFailure``).
"""

# ruff: noqa: N818 - the names say what happened; an "Error" behind each would say nothing more

from __future__ import annotations


class VisionmillError(Exception):
    """Base of everything visionmill raises on purpose; catch it to print ``message`` and ``hint`` without a traceback.

    Args:
        message: what was wrong and where, with the offending value; never holds a secret.
        hint: what the user can do; one sentence, may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process boundaries (Ray); the default protocol forgets keyword arguments.
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[VisionmillError], message: str, hint: str) -> VisionmillError:
    return kind(message, hint=hint)


class UsageError(VisionmillError):
    """Raised when the command or its parameters make no sense; nothing has been touched."""

    exit_code = 2


class StoreError(VisionmillError):
    """Raised when object storage or a folder refuses an operation; subclasses say why."""


class BucketMissing(StoreError):
    """Raised when the bucket or the local root folder does not exist."""


class AccessDenied(StoreError):
    """Raised for wrong or missing credentials, or a policy that forbids the call."""


class NoSpaceLeft(StoreError):
    """Raised when the disk or the bucket's quota is full."""


class ObjectGone(StoreError):
    """Raised when one key does not exist (any more)."""


class ObjectChanged(StoreError):
    """Raised when an object is no longer the one that was listed: its etag differs."""


class Conflict(StoreError):
    """Raised when a compare-and-swap lost: somebody else changed the object first."""


class StoreUnavailable(StoreError):
    """Raised for failures that pass: 500/503, time-outs, torn answers. Retried with bounded backoff first."""


class StoreOutage(StoreError):
    """Raised when a whole store did not answer for as long as it was waited for; no item is to blame."""


class ServiceError(VisionmillError):
    """Raised when a local service (Prefect, SeaweedFS, Ray) did not come up or went away."""


class DatasetError(VisionmillError):
    """Raised when a source as a whole cannot be read; single bad items become rows instead."""


class ContractBroken(VisionmillError):
    """Code that was plugged in gave what its record does not promise; trying again gives the same."""


class VersionMismatch(VisionmillError):
    """Raised when the output holds another version; names every difference."""


class LeaseHeld(VisionmillError):
    """Raised when another driver writes this output at the moment."""


class PromotionRefused(VisionmillError):
    """Raised when a candidate may not become champion: the gate refused it, or it was judged against another one."""


class CircuitOpen(VisionmillError):
    """Raised when too many items failed in a row; carries a sample of their errors in the message."""


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help. The one place that decides it; everything else retries by asking here."""
    return isinstance(error, StoreUnavailable | TimeoutError | ConnectionError)
