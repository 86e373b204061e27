"""What decoding may be asked for. Everything here changes rows, so everything here is part of a version."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

MAX_PIXELS = 178_956_970  # 512 MiB of RGB; where Pillow itself refuses
MAX_FILE_BYTES = 1 << 30  # no image of MAX_PIXELS that people keep is larger; a sparse or forged one is


class TooManyPixelsError(Exception):
    """Raised where a header promises an image of more pixels than the limit."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        self.width, self.height = width, height


class DamagedError(Exception):
    """Raised for pixels that came with a complaint, where such pixels are not wanted."""

    def __init__(self, words: str, *, is_cut_off: bool) -> None:
        super().__init__(words)
        self.is_cut_off = is_cut_off


_RANGE = re.compile(r"auto|full|image|(-?[0-9.]+(?:e-?[0-9]+)?):(-?[0-9.]+(?:e-?[0-9]+)?)")


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """What decoding may be asked for; the rules behind it are told in docs/media.md.

    Args:
        stride: of a video, every how many-th frame, counted from its first frame.
        max_pixels: images and frames with more are failed items, decided from the header.
        max_file_bytes: larger images are failed items, and are not fetched.
        damaged: what becomes of pixels that the decoder gives together with a complaint about damaged data: a failed
            item, or an item with a note.
        colour: convert by a stored colour profile to sRGB, or take the numbers as stored.
        sample_range: which sample values of images deeper than 8 bits become 0 and 255: ``auto`` (by the documented
            rule), ``full`` (the range of the stored type), ``image`` (the smallest and largest of the image), or
            ``LOW:HIGH``.
    """

    stride: int = 1
    max_pixels: int = MAX_PIXELS
    max_file_bytes: int = MAX_FILE_BYTES
    damaged: Literal["failed", "keep"] = "failed"
    colour: Literal["srgb", "stored"] = "srgb"
    sample_range: str = "auto"

    def __post_init__(self) -> None:
        if self.stride < 1 or self.max_pixels < 1 or self.max_file_bytes < 1:
            raise ValueError(
                "stride, max_pixels and max_file_bytes must be 1 or more, "
                f"got {self.stride}, {self.max_pixels} and {self.max_file_bytes}"
            )
        check_sample_range(self.sample_range)

    @classmethod
    def of_version(cls, parameters: Mapping[str, Any]) -> DecodeOptions:
        """How the rows of a version were decoded, by its parameters (:attr:`version_parameters`)."""
        names = {field.name: field.name for field in fields(cls)} | {"stride": "frame_stride"}
        return cls(**{name: parameters[key] for name, key in names.items() if key in parameters})

    def tolerated(self, damage: str | None, *, is_cut_off: bool = False) -> list[str]:
        """The note about damage that a decoder complains of; none where it does not.

        Raises:
            DamagedError: damaged pixels are not wanted.
        """
        if damage is None:
            return []
        if self.damaged == "failed":
            raise DamagedError(damage, is_cut_off=is_cut_off)
        return [f"damaged: {damage}; what could not be read is grey or smeared"]

    @property
    def version_parameters(self) -> dict[str, object]:
        """What of it belongs to a version: the stride, the limit of pixels, and what else differs from its default.

        A field that came later than the first outputs counts only where it is used, so that they stay of one version
        with the rows made now.
        """
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        later = {name: value for name, (value, default) in values.items() if name != "stride" and value != default}
        return {"frame_stride": self.stride, "max_pixels": self.max_pixels, **later}


def check_sample_range(text: str) -> tuple[float, float] | None:
    """The two numbers of ``LOW:HIGH``, None for the named ranges.

    Raises:
        ValueError: for anything else.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"must be auto, full, image or LOW:HIGH, got {text!r}")
    if match[1] is None:
        return None
    low, high = float(match[1]), float(match[2])
    if not low < high:
        raise ValueError(f"must go from a lower to a higher value, got {text!r}")
    return low, high
