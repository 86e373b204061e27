"""Take secrets out of text before it is printed, logged or stored."""

from __future__ import annotations

import logging
import os
import re

MASK = "***"
MIN_SECRET_LENGTH = 6  # shorter values would blank out ordinary words

_SECRET_NAME = re.compile(r"(SECRET|PASSWORD|PASSWD|TOKEN|AUTH_STRING|API_KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIAL)", re.I)
_NOT_SECRET = re.compile(r"(_PATH|_FILE|_MODE|_URL|_URI|_ENABLED)$", re.I)  # e.g. RAY_AUTH_TOKEN_PATH names a file
_SHAPES = (
    # user:password@ in a URL
    (re.compile(r"(?P<keep>[a-z][a-z0-9+.-]*://)[^/\s:@]+:[^/\s@]+(?=@)", re.I), rf"\g<keep>{MASK}"),
    # AWS access key ids
    (re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}\b"), MASK),
    # signed URLs and signed requests
    (re.compile(r"(?P<keep>X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s\"']+", re.I), rf"\g<keep>{MASK}"),
    (re.compile(r"(?P<keep>\b(?:Signature|Credential)=)[^,&\s\"']+"), rf"\g<keep>{MASK}"),
    (re.compile(r"(?P<keep>\bAuthorization['\"]?\s*[:=]\s*['\"]?(?:Basic|Bearer|AWS4-HMAC-SHA256)\s+)[^\s\"',]+", re.I),
     rf"\g<keep>{MASK}"),
    (re.compile(r"(?P<keep>\b(?:Basic|Bearer)\s+)[A-Za-z0-9+/_.=-]{16,}"), rf"\g<keep>{MASK}"),
    # name=value and "name": "value"
    (re.compile(
        r"(?P<keep>\b[\w-]*(?:secret|password|passwd|token|auth_string|api_key|apikey|access_key)[\w-]*['\"]?\s*[:=]\s*"
        r"['\"]?)(?P<value>[^\s'\",;&)}\]]{6,})", re.I), rf"\g<keep>{MASK}"),
    # private key blocks
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.S), MASK),
)  # fmt: skip


def secret_values() -> list[str]:
    """Values of environment variables whose names say that they are secret, longest first."""
    values = {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and not _NOT_SECRET.search(name) and len(value) >= MIN_SECRET_LENGTH
    }
    # user:password pairs leak by their password too (the user is a name, often an ordinary word)
    passwords = {value.partition(":")[2] for value in values}
    values |= {password for password in passwords if len(password) >= MIN_SECRET_LENGTH}
    return sorted(values, key=len, reverse=True)


def redact(text: str) -> str:
    """``text`` without secrets: values known from the environment, and anything in a known shape."""
    for value in secret_values():
        text = text.replace(value, MASK)
    for shape, replacement in _SHAPES:
        text = shape.sub(replacement, text)
    return text


class RedactingFilter(logging.Filter):
    """Redacts each record's final message and traceback; add it to handlers with :func:`protect_logging`."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        clean = redact(message)
        if clean != message:
            record.msg, record.args = clean, ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        return True


def protect_logging(logger: logging.Logger | None = None) -> None:
    """Put a :class:`RedactingFilter` on every handler of ``logger`` (default: root). Safe to call again."""
    for handler in (logger or logging.getLogger()).handlers:
        if not any(isinstance(one, RedactingFilter) for one in handler.filters):
            handler.addFilter(RedactingFilter())
