"""Read one array of a large JSON object piece by piece: annotation files of gigabytes must not be loaded whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TextIO

CHUNK_CHARS = 1 << 20
MAX_VALUE_CHARS = 64 << 20  # one element longer than this is damage

_BLANK = re.compile(r"[ \t\r\n]*")
_AFTER_VALUE = frozenset(",:]} \t\r\n")
_INTERESTING = re.compile(r'["\[\]{}]')
_STRING_PART = re.compile(r'(?:[^"\\]|\\.)*', re.DOTALL)


class JsonBrokenError(ValueError):
    """The text is no JSON object, or ends too early."""


def iter_array(stream: TextIO, name: str) -> Iterator[object]:
    """The elements of the top-level array ``name``, one at a time; nothing when there is no such array.

    Raises:
        JsonBrokenError: not a JSON object, or cut short before the array's end.
    """
    text = _Cursor(stream)
    text.expect("{")
    if text.peek() == "}":
        return
    while True:
        key = text.value()
        text.expect(":")
        if key == name and text.peek() == "[":
            yield from text.elements()
            return
        text.skip_value()
        if text.take_one_of(",}") == "}":
            return


class _Cursor:
    """A window over the stream that moves forward."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._buffer = ""
        self._at = 0
        self._ended = False
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        while True:
            match = _BLANK.match(self._buffer, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._fill():
                raise JsonBrokenError("the JSON text ends too early")

    def take_one_of(self, chars: str) -> str:
        char = self.peek()
        if char not in chars:
            raise JsonBrokenError(f"expected {' or '.join(chars)} but found {self._buffer[self._at : self._at + 20]!r}")
        self._at += 1
        return char

    def expect(self, char: str) -> None:
        self.take_one_of(char)

    def value(self) -> object:
        """Decode one value of bounded size."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if len(self._buffer) - self._at > MAX_VALUE_CHARS or not self._fill():
                    raise JsonBrokenError(f"not JSON: {error.msg}") from error
                continue
            if self._buffer[end : end + 1] not in _AFTER_VALUE and self._fill():
                continue  # a number goes on in the next chunk
            self._at = end
            return value

    def elements(self) -> Iterator[object]:
        self.expect("[")
        if self.peek() == "]":
            return
        while True:
            yield self.value()
            if self.take_one_of(",]") == "]":
                return

    def skip_value(self) -> None:
        """Move past one value of any size without building it."""
        if self.peek() not in '[{"':
            self.value()
            return
        depth = 0
        while True:
            match = _INTERESTING.search(self._buffer, self._at)
            if match is None:
                self._at = len(self._buffer)
                self.peek()
                continue
            self._at = match.end()
            if match[0] == '"':
                self._skip_string()
            else:
                depth += 1 if match[0] in "[{" else -1
            if depth == 0:
                return

    def _skip_string(self) -> None:
        """Move past the closing quote; the opening one has been read."""
        while True:
            match = _STRING_PART.match(self._buffer, self._at)
            self._at = match.end() if match else self._at
            if self._buffer.startswith('"', self._at):
                self._at += 1
                return
            if not self._fill():
                raise JsonBrokenError("the JSON text ends inside a string")

    def _fill(self) -> bool:
        """Read on, forgetting what has been passed; False at the end."""
        if self._ended:
            return False
        chunk = self._stream.read(max(CHUNK_CHARS, len(self._buffer) - self._at))
        self._ended = not chunk
        self._buffer = self._buffer[self._at :] + chunk
        self._at = 0
        return bool(chunk)
