"""The error of the digitscape package."""

from __future__ import annotations


class DigitscapeError(ValueError):
    """A scene was asked for that digitscape cannot compose; the message says what is wrong."""
