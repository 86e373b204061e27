"""Upload a large file in parts; the completion is conditional, and an upload that loses removes its own parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from infra.errors import ObjectGone, StoreError
from infra.s3_errors import refusal_of

MULTIPART_FROM_BYTES = 64 << 20
MIN_PART_BYTES = 16 << 20
MAX_PARTS = 10_000


class _Call(Protocol):
    def __call__(self, operation: str, **arguments: Any) -> dict[str, Any]: ...


class _Retry(Protocol):
    def __call__(self, attempt: Any, uncertain: Any = None) -> Any: ...


@dataclass(frozen=True, slots=True)
class UploadOutcome:
    """``created``: the completion succeeded. ``uncertain``: it was refused after an attempt whose answer was lost."""

    created: bool
    uncertain: bool


class ConditionalUpload:
    """One multipart upload of one key.

    Args:
        call: performs an S3 operation on the key once.
        retry: repeats an attempt with backoff; its second argument is told each transient failure.
    """

    def __init__(self, call: _Call, retry: _Retry) -> None:
        self._call = call
        self._retry = retry
        self._lost_answer = False

    def run(self, path: Path) -> UploadOutcome:
        """Upload ``path`` (not empty). Whatever goes wrong, no parts are left behind that a call could remove.

        Raises:
            StoreError: any failure but a lost race.
        """
        upload_id = self._retry(lambda: self._call("create_multipart_upload"))["UploadId"]
        try:
            parts = self._upload_parts(path, upload_id)
            self._retry(lambda: self._complete(upload_id, parts), self._note_lost_answer)
        except BaseException as error:
            self._abort(upload_id)
            if isinstance(error, StoreError) and self._is_refused(error):
                return UploadOutcome(created=False, uncertain=self._lost_answer)
            raise
        return UploadOutcome(created=True, uncertain=False)

    def _upload_parts(self, path: Path, upload_id: str) -> list[dict[str, Any]]:
        part_bytes = max(MIN_PART_BYTES, math.ceil(path.stat().st_size / MAX_PARTS))
        parts: list[dict[str, Any]] = []
        with path.open("rb") as file:
            while data := file.read(part_bytes):
                number = len(parts) + 1
                answer = self._retry(
                    lambda number=number, data=data: self._call(
                        "upload_part", UploadId=upload_id, PartNumber=number, Body=data
                    )
                )
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        return parts

    def _complete(self, upload_id: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
        return self._call(
            "complete_multipart_upload", UploadId=upload_id, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
        )

    def _note_lost_answer(self, error: BaseException) -> None:
        self._lost_answer = True

    def _is_refused(self, error: StoreError) -> bool:
        """412, or after a lost answer 404: the upload is gone because our completion went through (or was aborted)."""
        refusal = refusal_of(error.__cause__) if error.__cause__ is not None else None
        if refusal is not None and refusal.is_precondition:
            return True
        return self._lost_answer and isinstance(error, ObjectGone)

    def _abort(self, upload_id: str) -> None:
        try:
            self._retry(lambda: self._call("abort_multipart_upload", UploadId=upload_id))
        except StoreError:
            return  # completed, aborted before, or unreachable: the bucket's lifecycle rule sweeps it
