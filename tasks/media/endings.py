"""What an object is, by the end of its name: one table for listings and decoders.

Bytes decide later, in the worker; a plan must not read them. Formats that are known and not read have their endings
here, too, so that a folder's summary says so.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

Kind = Literal["image", "video", "tar", "other"]

# Pillow's name of a format -> the endings its files have. Only decoders that read pixels: Pillow also knows formats
# that start programs (EPS) or hold other files (ICO, FPX).
ENDINGS_OF_FORMAT: dict[str, frozenset[str]] = {
    name: frozenset(endings.split())
    for name, endings in {
        "JPEG": "jpg jpeg jpe jfif",
        "MPO": "mpo jpg jpeg jpe",
        "PNG": "png apng",
        "WEBP": "webp",
        "TIFF": "tif tiff",
        "BMP": "bmp dib",
        "DIB": "bmp dib",
        "GIF": "gif",
        "PPM": "ppm pgm pbm pnm pfm",
        "JPEG2000": "jp2 j2k jpf jpx jpc j2c",
        "AVIF": "avif avifs",
        "TGA": "tga icb vda vst",
    }.items()
}
IMAGE_ENDINGS = frozenset[str]().union(*ENDINGS_OF_FORMAT.values())
VIDEO_ENDINGS = frozenset(
    "mp4 m4v mov qt f4v 3gp 3g2 avi divx mkv mk3d webm mpg mpeg mpe m1v m2v vob ts m2t mts m2ts mxf ogv ogm flv asf wmv"
    " dv mjpg mjpeg h264 h265 hevc ivf insv".split()
)
NOT_READ = frozenset(
    "heic heif hif jxl psd psb svg svgz eps ai pdf ico cur icns pcx sgi rgb qoi dds exr hdr xbm xpm wmf emf fits fit"
    " dng cr2 cr3 nef arw orf rw2 raf pef srw dcm nii svs ndpi czi lif nd2 oib oif lsm mrxs scn vsi"
    " rm rmvb wtv swf braw r3d".split()
)
COMPRESSED_TAR_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(IMAGE_ENDINGS, "image"),
    **dict.fromkeys(VIDEO_ENDINGS, "video"),
    "tar": "tar",
}


def ending_of(name: str) -> str:
    """The ending in small letters: ``a/b/photo.JPG`` -> ``jpg``; a leading dot is no ending (``.png`` -> nothing)."""
    stem, dot, ending = name.rpartition("/")[2].rpartition(".")
    return ending.lower() if dot and stem else ""


def kind_of(name: str) -> Kind:
    """The kind of one object: ``a/b/photo.JPG`` -> ``image``."""
    return _KINDS.get(ending_of(name), "other")


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
    ending = ending_of(name)
    if not ending:
        return "no file name ending"
    if ending in NOT_READ:
        return f"image or video format that is not read: .{ending}"
    return f"no image or video ending: .{ending[:16]}"
