"""Colour profiles are applied: what a row sees is sRGB, unless stored numbers are asked for."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from tasks.media.images import Frame, decode_image
from tasks.media.options import DecodeOptions
from tests import corpus

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped() -> bytes:
    """The sRGB profile with red's and blue's colorants exchanged."""
    return SRGB.replace(b"rXYZ", b"----", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"----", b"bXYZ", 1)


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A minimal ICC display profile (ICC.1:2001-04, 6.1): header, tag table, tags."""
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table, body, at = table + name + struct.pack(">II", at, len(content)), body + content, at + len(content)
    white = struct.pack(">3i", 63190, 65536, 54061)
    header = struct.pack(">I4sI4s4s4s", 128 + 4 + len(table) + len(body), b"lcms", 0x02100000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + white
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def grey_profile(gamma: float) -> bytes:
    """Grey with a power curve."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    words = b"desc" + bytes(4) + struct.pack(">I", 5) + b"grey\0" + bytes(78)
    return profile(b"GRAY", {b"desc": words, b"wtpt": white, b"kTRC": curve})


def decoded(data: bytes, **options: str) -> Frame:
    result = decode_image(data, options=DecodeOptions(**options))  # type: ignore[arg-type]
    assert result.failure is None, result.failure
    return result


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_profile_that_exchanges_red_and_blue_exchanges_them(file_format: str) -> None:
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100}}
    data = corpus.encoded(
        Image.fromarray(corpus.scene()), file_format, icc_profile=swapped(), **options.get(file_format, {})
    )
    shown = decoded(data)
    assert np.abs(shown.image_rgb_hwc_u8.astype(int) - corpus.scene()[:, :, ::-1]).mean() < 3
    assert [note for note in shown.notes if note.startswith("colours converted from the profile")]
    stored = decoded(data, colour="stored")
    assert np.abs(stored.image_rgb_hwc_u8.astype(int) - corpus.scene()).mean() < 3
    assert stored.notes == ("colour profile left aside, as asked",)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_srgb_under_any_name_changes_nothing_and_says_nothing(file_format: str) -> None:
    plain = corpus.encoded(Image.fromarray(corpus.scene()), file_format)
    tagged = corpus.encoded(Image.fromarray(corpus.scene()), file_format, icc_profile=SRGB)
    assert decoded(tagged).notes == ()
    np.testing.assert_array_equal(decoded(tagged).image_rgb_hwc_u8, decoded(plain).image_rgb_hwc_u8)


def test_transparency_is_composited_in_srgb() -> None:
    data = corpus.encoded(corpus.flat("RGBA", (200, 0, 0, 128)), "PNG", icc_profile=swapped())
    np.testing.assert_allclose(decoded(data).image_rgb_hwc_u8[0, 0], (127, 127, 227), atol=3)
    palette = corpus.flat("P", 1)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    result = decoded(corpus.encoded(palette, "PNG", icc_profile=swapped()))
    np.testing.assert_allclose(result.image_rgb_hwc_u8[0, 0], (0, 0, 200), atol=3)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
def test_a_grey_profile_is_applied_to_grey(file_format: str) -> None:
    data = corpus.encoded(corpus.flat("L", 55), file_format, icc_profile=grey_profile(1.0))
    linear = 55 / 255  # encoded for sRGB: IEC 61966-2-1
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(decoded(data).image_rgb_hwc_u8[0, 0], [expected] * 3, atol=2)


def test_deep_files_are_converted_after_scaling() -> None:
    data = corpus.encoded(corpus.flat("I;16", 55 * 257), "TIFF", icc_profile=grey_profile(1.0))
    np.testing.assert_allclose(decoded(data, sample_range="full").image_rgb_hwc_u8[0, 0], [128] * 3, atol=3)


@pytest.mark.parametrize("bad", [b"x" * 3000, SRGB[:400], grey_profile(1.0)])
def test_a_profile_that_does_not_fit_is_left_aside_with_a_note(bad: bytes) -> None:
    data = corpus.encoded(Image.fromarray(corpus.scene()), "PNG", icc_profile=bad)
    result = decoded(data)
    np.testing.assert_array_equal(result.image_rgb_hwc_u8, corpus.scene())
    assert result.notes[0].startswith("colour profile left aside: it ")


def test_profiles_of_many_threads_give_one_result() -> None:
    from concurrent.futures import ThreadPoolExecutor

    data = corpus.encoded(Image.fromarray(corpus.scene()), "JPEG", icc_profile=swapped())
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: decoded(data).image_rgb_hwc_u8.tobytes(), range(32)))
    assert len(set(results)) == 1


def test_pillow_would_show_the_same() -> None:
    data = corpus.encoded(Image.fromarray(corpus.scene()), "PNG", icc_profile=swapped())
    with Image.open(io.BytesIO(data)) as image:
        own = ImageCms.profileToProfile(image, io.BytesIO(swapped()), ImageCms.createProfile("sRGB"))
    assert own is not None
    assert np.abs(decoded(data).image_rgb_hwc_u8.astype(int) - np.asarray(own)).max() <= 2
