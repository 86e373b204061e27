"""No secret survives on its way to a terminal, a log or a row."""

from __future__ import annotations

import io
import logging

import pytest

from infra.redaction import MASK, protect_logging, redact

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{SECRET.replace('/', '%2F')}@host/path",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f'{{"secret_key": "{SECRET}"}}',
        f"password: {SECRET}",
        f"PREFECT_API_AUTH_STRING=admin:{SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"'Authorization': 'Basic {SECRET}'",
        f"https://b.s3.amazonaws.com/k?X-Amz-Signature={SECRET}&X-Amz-Expires=60",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_secrets_of_a_known_shape_are_masked(text: str) -> None:
    assert SECRET[-20:] not in redact(text)
    assert MASK in redact(text)


def test_access_key_ids_are_masked() -> None:
    assert redact("key AKIAIOSFODNN7EXAMPLE used") == f"key {MASK} used"


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PREFECT_API_AUTH_STRING", "RAY_AUTH_TOKEN", "MY_PASSWORD"]
)
def test_values_known_from_the_environment_are_masked_anywhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "visionmill:unguessable-4711")
    assert "unguessable-4711" not in redact("in the middle of unguessable-4711words")
    assert "unguessable-4711" not in redact("whole visionmill:unguessable-4711")


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/key with spaces#1?.jpg",
        "the token of attempt 17 was found in the stored object",
        "tokens: 12",
        "no space left for /data/x",
        "RAY_AUTH_TOKEN_PATH names a file",
        "secretary.jpg",
    ],
)
def test_ordinary_text_passes_unchanged(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/data/x")
    monkeypatch.setenv("SHORT_TOKEN", "key")
    assert redact(text) == text


def test_log_records_and_tracebacks_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    stream = io.StringIO()
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(stream))
    protect_logging(logger)
    protect_logging(logger)
    assert len(logger.handlers[0].filters) == 1
    logger.warning("key is %s", SECRET)
    try:
        raise ValueError(f"bad key {SECRET}")
    except ValueError:
        logger.exception("failed with %d", 3)
    logger.info("plain %s", "text")
    assert SECRET not in stream.getvalue()
    assert "failed with 3" in stream.getvalue()
    assert "ValueError" in stream.getvalue()
