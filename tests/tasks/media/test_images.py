from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from tasks.media.images import Frame, decode_image
from tasks.media.options import DecodeOptions
from tasks.media.orientation import display_orientation, from_exif
from tests import corpus
from tests.corpus import Case

GOOD = {case.name: case for case in corpus.good_cases()}
BAD = {case.name: case for case in corpus.bad_cases()}


def decoded(data: bytes, name: str = "", **options: object) -> Frame:
    result = decode_image(data, name=name, options=DecodeOptions(**options))  # type: ignore[arg-type]
    assert result.failure is None, result.failure
    return result


@pytest.mark.parametrize("case", GOOD.values(), ids=GOOD.keys())
def test_odd_files_give_pixels_and_say_what_was_done(case: Case) -> None:
    result = decoded(case.data, name=case.name)
    assert result.size_hw == case.size_hw
    pixels = result.image_rgb_hwc_u8
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*result.size_hw, 3)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    notes = "; ".join(result.notes)
    assert case.note in notes
    assert bool(case.note) == bool(notes) or case.name == "rgb-transparent.png"
    if case.colour is not None:
        np.testing.assert_allclose(pixels.reshape(-1, 3).mean(axis=0), case.colour, atol=case.tolerance)


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_files_become_one_clear_line(case: Case) -> None:
    result = decode_image(case.data, name=case.name).failure
    assert result is not None
    assert result.stage == "decode"
    if case.error_type:
        assert result.error_type == case.error_type, result
    assert case.words in result.error
    assert "\n" not in result.error
    assert len(result.error) > 15
    assert "0x" not in result.error  # addresses would make equal runs write unequal rows
    assert decode_image(case.data, name=case.name).failure == result


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(file_format: str, orientation: int) -> None:
    result = decoded(corpus.rotated(file_format, orientation))
    tolerance = 12 if file_format == "JPEG" else 0
    difference = np.abs(result.image_rgb_hwc_u8.astype(int) - corpus.scene().astype(int))
    assert difference.max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_equals_pillows_own(orientation: int) -> None:
    picture = Image.fromarray(corpus.scene())
    exif = picture.getexif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(from_exif(corpus.scene(), orientation), np.asarray(ImageOps.exif_transpose(picture)))


def test_the_first_page_of_a_turned_multi_page_tiff_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(corpus.scene()).transpose(Image.Transpose.ROTATE_90)
    data = corpus.encoded(stored, "TIFF", exif=exif, save_all=True, append_images=[stored])
    result = decoded(data)
    np.testing.assert_array_equal(result.image_rgb_hwc_u8, corpus.scene())
    assert result.notes == ("multi-page: first of 2 pages", "rotated by EXIF orientation 6")


def test_cmyk_ink_is_read_as_adobe_stores_it() -> None:
    # Adobe marks the file and stores 255 for "no ink"; reading it plainly would give the negative.
    data = GOOD["cmyk.jpg"].data
    assert b"Adobe" in data
    assert decoded(data).image_rgb_hwc_u8.mean(axis=(0, 1)).round().tolist() == [255.0, 0.0, 0.0]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65_535, 64 * 48).astype(np.uint16).reshape(48, 64)
    for file_format in ("PNG", "TIFF"):
        result = decoded(corpus.encoded(Image.fromarray(ramp), file_format))
        np.testing.assert_array_equal(result.image_rgb_hwc_u8[:, :, 0], (ramp >> 8).astype(np.uint8))
    big_endian = Image.frombytes("I;16B", (64, 48), ramp.astype(">u2").tobytes())
    result = decoded(corpus.encoded(big_endian, "TIFF"))
    np.testing.assert_array_equal(result.image_rgb_hwc_u8[:, :, 0], (ramp >> 8).astype(np.uint8))


def test_sixteen_bit_pgm_uses_the_range_of_its_header() -> None:
    ramp = np.linspace(0, 65_535, 64 * 48).astype(">u2").reshape(48, 64)
    result = decoded(b"P5 64 48 65535\n" + ramp.tobytes())
    np.testing.assert_array_equal(result.image_rgb_hwc_u8[:, :, 1], (ramp >> 8).astype(np.uint8))


def test_float_images_survive_what_is_not_a_number() -> None:
    values = np.zeros((4, 4), np.float32)
    values[0, 0], values[0, 1], values[3, 3] = np.nan, np.inf, 2.0
    result = decoded(corpus.encoded(Image.fromarray(values), "TIFF"))
    assert result.image_rgb_hwc_u8[3, 3].tolist() == [255, 255, 255]
    assert result.image_rgb_hwc_u8[0, 0].tolist() == [0, 0, 0]


def test_pixels_of_a_plain_jpeg_are_those_of_a_full_decode() -> None:
    data = corpus.good_jpeg((480, 640))
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decoded(data).image_rgb_hwc_u8, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "AVIF"])
def test_the_pixel_limit_is_asked_before_decoding(file_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = corpus.encoded(corpus.flat("RGB", 5, (100, 100)), file_format)
    assert decoded(data, max_pixels=10_000).size_hw == (100, 100)

    def loaded(*_: object) -> None:
        pytest.fail("pixels were decoded although the header is over the limit")

    monkeypatch.setattr(Image.Image, "load", loaded)
    result = decode_image(data, options=DecodeOptions(max_pixels=9_999)).failure
    assert result is not None
    assert result.error_type == "TooManyPixels"
    assert "100 x 100" in result.error


def test_a_webp_canvas_is_refused_before_pillow_reserves_it() -> None:
    chunk = b"VP8X" + (10).to_bytes(4, "little") + bytes(4) + (16_382).to_bytes(3, "little") * 2
    data = b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk + bytes(8)
    result = decode_image(data).failure
    assert result is not None
    assert result.error_type == "TooManyPixels"


@pytest.mark.parametrize("cut", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "JPEG2000", "AVIF", "TIFF"])
def test_no_cut_file_passes_for_a_whole_one(file_format: str, cut: float) -> None:
    noise = np.random.default_rng(3).integers(0, 255, (120, 160, 3)).astype(np.uint8)
    options = {"compression": "tiff_lzw"} if file_format == "TIFF" else {}
    data = corpus.encoded(Image.fromarray(noise), file_format, **options)
    result = decode_image(data[: int(len(data) * cut)]).failure
    assert result is not None
    assert result.error_type in {"TruncatedImage", "CorruptImage", "UnsupportedFormat", "NotAnImage"}


def test_random_damage_never_raises() -> None:
    generator = np.random.default_rng(11)
    samples = [case.data for case in GOOD.values() if len(case.data) < 20_000]
    outcomes = set()
    for i in range(400):
        data = bytearray(samples[i % len(samples)])
        for position in generator.integers(0, len(data), 8):
            data[position] = generator.integers(0, 256)
        outcomes.add(decode_image(bytes(data), options=DecodeOptions(max_pixels=4_000_000)).failure is None)
    assert outcomes == {True, False}


def test_nothing_is_printed_for_any_file() -> None:
    code = (
        "from tests import corpus; from tasks.media.images import decode_image\n"
        "for case in corpus.all_cases(): decode_image(case.data, name=case.name)"
    )
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr == ""


def test_display_matrices_of_quarter_turns_name_their_orientation() -> None:
    def matrix(a: int, b: int, c: int, d: int) -> bytes:
        return np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], "<i4").tobytes()

    assert display_orientation(matrix(1, 0, 0, 1)) == 1
    assert display_orientation(matrix(0, 1, -1, 0)) == 6  # a phone held upright: turn clockwise to show
    assert display_orientation(matrix(-1, 0, 0, -1)) == 3
    assert display_orientation(matrix(0, -1, 1, 0)) == 8
    assert display_orientation(matrix(-1, 0, 0, 1)) == 2
    tilted = np.array([46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30], "<i4").tobytes()
    assert display_orientation(tilted) is None
    assert display_orientation(b"short") is None
