"""What an object is, by the end of its name. Bytes decide later, in the worker; a plan must not read them."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

Kind = Literal["image", "video", "tar", "other"]

IMAGE_ENDINGS = frozenset(
    "jpg jpeg jpe jfif png apng gif webp bmp dib tif tiff ppm pgm pbm pnm jp2 avif tga".split(),
)
VIDEO_ENDINGS = frozenset("mp4 m4v mov avi mkv webm mpg mpeg wmv flv 3gp".split())
COMPRESSED_TAR_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(IMAGE_ENDINGS, "image"),
    **dict.fromkeys(VIDEO_ENDINGS, "video"),
    "tar": "tar",
}


def kind_of(name: str) -> Kind:
    """The kind of one object: ``a/b/photo.JPG`` -> ``image``; a leading dot is no ending (``.png`` -> ``other``)."""
    stem, dot, ending = name.rpartition(".")
    if not dot or not stem or stem.endswith("/"):
        return "other"
    return _KINDS.get(ending.lower(), "other")


def kinds_of(names: pa.StringArray) -> pa.StringArray:
    """As :func:`kind_of`, for a column at once."""
    result = pa.scalar("other", pa.string())
    for kind, endings in (("tar", {"tar"}), ("video", VIDEO_ENDINGS), ("image", IMAGE_ENDINGS)):
        pattern = rf"(?is)[^/]\.(?:{'|'.join(sorted(endings))})\z"
        result = pc.if_else(pc.match_substring_regex(names, pattern), kind, result)
    return result


def reason_to_skip(name: str) -> str:
    """Why an object of kind ``other`` is left out of a folder's inventory, in words for the summary."""
    if name.endswith("/"):
        return "folder marker"
    if name.lower().endswith(COMPRESSED_TAR_ENDINGS):
        return "compressed tar (members cannot be read by range; store it uncompressed)"
    stem, dot, ending = name.rpartition("/")[2].rpartition(".")
    if not dot or not stem:
        return "no file name ending"
    return f"no image or video ending: .{ending.lower()[:16]}"
