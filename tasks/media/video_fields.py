"""Whether an H.264 stream may store a frame as two fields, by its sequence parameter set (ITU-T H.264, 7.3.2.1.1)."""

from __future__ import annotations

from typing import Any

from tasks.media.video_packets import packets_of

_SEQUENCE_PARAMETERS = 7
_WITH_CHROMA = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})  # profiles


def may_be_fields(container: Any, stream: Any) -> bool:
    """Whether the first sequence parameter set allows fields; True where there is none to ask.

    Args:
        container: at its start; packets are read from it.
    """
    data = bytes(stream.codec_context.extradata or b"")
    if (answer := _allows_fields(data)) is not None:
        return answer
    packet = next(packets_of(container, stream, lambda error: False), None)
    answer = None if packet is None else _allows_fields(bytes(packet))
    return answer is not False


def _allows_fields(data: bytes) -> bool | None:
    """By the first parameter set in a byte stream (Annex B); None if there is none, or it is cut off."""
    at = data.find(b"\x00\x00\x01")
    while at >= 0 and at + 4 < len(data):
        if data[at + 3] & 0x1F == _SEQUENCE_PARAMETERS:
            end = data.find(b"\x00\x00\x01", at + 3)
            body = data[at + 4 : end if end > 0 else len(data)].replace(b"\x00\x00\x03", b"\x00\x00")
            try:
                return not _frames_only(_Bits(body))
            except IndexError:
                return None
        at = data.find(b"\x00\x00\x01", at + 3)
    return None


class _Bits:
    """Reads bits and Exp-Golomb numbers (9.1); IndexError at the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | (self._data[self._at >> 3] >> (7 - (self._at & 7)) & 1)
            self._at += 1
        return value

    def number(self) -> int:
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


def _frames_only(bits: _Bits) -> bool:
    """frame_mbs_only_flag."""
    profile = bits.take(8)
    bits.take(16)  # constraints, level
    bits.number()  # id
    if profile in _WITH_CHROMA:
        if bits.number() == 3:  # chroma_format_idc
            bits.take(1)
        bits.number(), bits.number(), bits.take(1)  # bit depths, transform bypass
        if bits.take(1):
            return False  # scaling matrices: nobody uses them; the careful answer
    bits.number()  # log2_max_frame_num_minus4
    order = bits.number()
    if order == 0:
        bits.number()
    elif order == 1:
        bits.take(1), bits.number(), bits.number()
        for _ in range(min(bits.number(), 255)):
            bits.number()
    bits.number(), bits.take(1), bits.number(), bits.number()  # references, gaps allowed, width, height
    return bool(bits.take(1))
