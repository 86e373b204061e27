"""Buckets that ask for no signature, and buckets whose readers pay."""

from __future__ import annotations

import pytest

from infra.errors import AccessDenied
from infra.retry import RetryPolicy
from infra.store import split_uri
from infra.store_s3 import S3Store
from tests.faults import Fault, FaultyS3

pytestmark = pytest.mark.s3
QUICK = RetryPolicy(attempts=2, first_delay_s=0.01, max_delay_s=0.05)
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def read_everything(uri: str) -> None:
    """List, look, read whole and in part, through both ways of reading."""
    store = S3Store(uri, policy=QUICK)
    assert [info.key for info in store.list()] == ["x"]
    assert store.info("x").size_bytes == 10 and store.get("x") == b"0123456789"
    assert store.read_range("x", 2, 3) == b"234"
    with store.open("x") as stream:
        assert stream.read() == b"0123456789"


@pytest.mark.parametrize("all_buckets", [True, False], ids=["all buckets", "one by name"])
def test_a_public_bucket_is_read_without_credentials(
    faulty_s3: FaultyS3, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, all_buckets: bool
) -> None:
    S3Store(s3_bucket).put("x", b"0123456789")
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    faulty_s3.add(Fault("public", times=None))
    with pytest.raises(AccessDenied):
        S3Store(s3_bucket, policy=QUICK).get("x")
    bucket = split_uri(s3_bucket + "/x")[0].removeprefix("s3://")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "true" if all_buckets else f"other,{bucket}")
    read_everything(s3_bucket)


def test_other_buckets_than_those_named_are_asked_with_a_signature(
    faulty_s3: FaultyS3, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "some-public-bucket")
    S3Store(s3_bucket).put("x", b"0123456789")  # the server refuses whoever does not sign
    read_everything(s3_bucket)


def test_who_pays_for_requests_says_so_in_each(
    faulty_s3: FaultyS3, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    S3Store(s3_bucket).put("x", b"0123456789")
    faulty_s3.add(Fault("requester_pays", times=None))
    with pytest.raises(AccessDenied):
        S3Store(s3_bucket, policy=QUICK).get("x")
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    read_everything(s3_bucket)
