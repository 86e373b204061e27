"""What an S3 server, or the way to it, said, in our words. Codes and statuses are quoted, never a server's prose."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
from dataclasses import dataclass

import aiohttp
from botocore import exceptions as botocore_errors
from botocore.parsers import ResponseParserError

from infra.errors import AccessDenied, BucketMissing, NoSpaceLeft, ObjectGone, StoreError, StoreUnavailable

_DENIED = {
    "AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "RequestTimeTooSkewed", "TokenRefreshRequired", "AccountProblem", "403", "401",
}  # fmt: skip
_FULL = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "InsufficientCapacity", "507"}
_TRANSIENT = {
    "InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout", "Throttling", "ThrottlingException",
    "RequestLimitExceeded", "OperationAborted", "ConditionalRequestConflict", "BadDigest", "IncompleteBody",
    "RequestTimeTooLong", "TooManyRequests", "XAmzContentSHA256Mismatch", "Busy",
}  # fmt: skip
_TRANSIENT_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
_NO_CREDENTIALS = (
    botocore_errors.NoCredentialsError,
    botocore_errors.PartialCredentialsError,
    botocore_errors.CredentialRetrievalError,
    botocore_errors.TokenRetrievalError,
    botocore_errors.ProfileNotFound,
)
_PASSING = (
    botocore_errors.ConnectionError,  # refused or unresolved endpoints
    botocore_errors.HTTPClientError,  # time-outs, proxies, dropped answers
    botocore_errors.IncompleteReadError,
    botocore_errors.ResponseStreamingError,
    ResponseParserError,
    botocore_errors.ReadTimeoutError,
    aiohttp.ClientError,
    http.client.HTTPException,
    TimeoutError,
    ConnectionError,
    socket.gaierror,
    ssl.SSLError,
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The part of an error answer that decides: HTTP status (0 if none came) and S3 error code."""

    status: int
    code: str

    @property
    def is_precondition(self) -> bool:
        """412: the condition did not hold (or: the store saw our own earlier success)."""
        return self.status == 412 or self.code in ("PreconditionFailed", "412")


class RefusedError(Exception):
    """Raised by our own reader when the server answered with an error."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.status} {refusal.code}")
        self.refusal = refusal


def refusal_of(error: BaseException) -> Refusal | None:
    """The server's answer inside an exception of s3fs or botocore; None if there was no answer."""
    cause: BaseException | None = error
    for _ in range(6):
        if cause is None:
            return None
        if isinstance(cause, RefusedError):
            return cause.refusal
        if isinstance(cause, botocore_errors.ClientError):
            response = cause.response
            status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
            return Refusal(status, str(response.get("Error", {}).get("Code", "")))
        cause = cause.__cause__ or cause.__context__
    return None


def translate_s3(error: BaseException, *, doing: str, uri: str) -> StoreError:
    """The StoreError for a failed call. ``doing`` is the S3 operation, ``uri`` what it was done to."""
    refusal = refusal_of(error)
    if refusal is not None:
        return _translate_refusal(refusal, doing, uri)
    chain = list(_chain(error))
    if any(isinstance(cause, _NO_CREDENTIALS) for cause in chain):
        return AccessDenied(
            f"{doing} {uri}: no S3 credentials found",
            hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use an instance role; a public bucket is read "
            "without by AWS_NO_SIGN_REQUEST=BUCKET.",
        )
    if any(isinstance(cause, _PASSING) or _is_unreachable(cause) for cause in chain):
        return StoreUnavailable(
            f"{doing} {uri}: no complete answer ({type(chain[-1]).__name__})",
            hint="Check AWS_ENDPOINT_URL, the network and the server.",
        )
    return StoreError(f"{doing} {uri}: {type(error).__name__}", hint="Check the bucket name, key, region and endpoint.")


def _is_unreachable(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(found) < 8:
        found.append(cause)
        cause = cause.__cause__
    return found


def _translate_refusal(refusal: Refusal, doing: str, uri: str) -> StoreError:
    said = f"{doing} {uri}: the server answered {refusal.status} {refusal.code}"
    code, status = refusal.code, refusal.status
    if code == "NoSuchBucket":
        return BucketMissing(f"the bucket of {uri} does not exist", hint="Check its name, or create it first.")
    if code in ("NoSuchKey", "NoSuchUpload", "404") or status == 404:
        return ObjectGone(f"{uri} does not exist")
    if code in _FULL or status == 507:
        return NoSpaceLeft(f"no space left: {said}", hint="Free space or raise the quota, then run again: it resumes.")
    if code in _DENIED or status in (401, 403):
        return AccessDenied(
            f"access denied: {said}", hint="Check the credentials, the clock of this machine, and the bucket's policy."
        )
    if code in _TRANSIENT or status in _TRANSIENT_STATUS:
        return StoreUnavailable(said, hint="The store is overloaded or failing; run again later.")
    if status in (301, 307) or code in ("PermanentRedirect", "AuthorizationHeaderMalformed"):
        return StoreError(said, hint="The bucket lives elsewhere: set AWS_REGION or AWS_ENDPOINT_URL.")
    return StoreError(said, hint="The server does not accept this request.")
