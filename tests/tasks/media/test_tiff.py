"""TIFFs of science: the values are right by the documented rule, or the file is called not supported."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from tasks.media.images import Frame, decode_image
from tasks.media.options import DecodeOptions
from tests import corpus

RAMP = np.linspace(0, 1, 48 * 64).reshape(48, 64)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, values, metadata=None, **({"photometric": "minisblack"} | options))
    return out.getvalue()


def decoded(data: bytes, **options: Any) -> Frame:
    result = decode_image(data, options=DecodeOptions(**options))
    assert result.failure is None, result.failure
    return result


def grey(data: bytes, **options: Any) -> np.ndarray:
    pixels = decoded(data, **options).image_rgb_hwc_u8
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[:, :, 0]


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzma", "pillow-lzw"])
def test_sixteen_bit_samples_are_scaled_from_the_bits_that_are_used(bits: int, order: str, compression: str) -> None:
    values = (RAMP * (2**bits - 1)).round().astype(np.uint16)
    if compression == "pillow-lzw":
        data = corpus.encoded(Image.fromarray(values), "TIFF", compression="tiff_lzw")
    else:
        data = tiff(values, byteorder=order, compression=compression)
    np.testing.assert_array_equal(grey(data), values >> (bits - 8))


def test_the_note_names_the_range() -> None:
    values = (RAMP * 4095).astype(np.uint16)
    assert decoded(tiff(values)).notes[0] == "16-bit samples, 12 bits used: scaled from 0..4095 to 0..255"
    assert decoded(tiff(values), sample_range="full").notes[0] == "16-bit samples: scaled to 8 bits"
    assert decoded(tiff(values), sample_range="100:200").notes[0] == "16-bit samples: scaled from 100..200 to 0..255"


@pytest.mark.parametrize(
    ("sample_range", "low", "high"), [("full", 0, 65_535), ("image", 0, 4095), ("100:3000", 100, 3000)]
)
def test_the_range_can_be_chosen(sample_range: str, low: int, high: int) -> None:
    values = (RAMP * 4095).astype(np.uint16)
    expected = ((values.astype(float) - low) * 255 / (high - low)).clip(0, 255)
    assert np.abs(grey(tiff(values), sample_range=sample_range) - expected).max() <= (
        1 if sample_range == "full" else 0.5
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_white_is_zero_is_no_negative(dtype: type) -> None:
    values = (RAMP * np.iinfo(dtype).max).astype(dtype)
    shown = grey(tiff(values, photometric="miniswhite"))
    assert np.abs(shown - (255 - RAMP * 255)).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_large_integers_do_not_wrap(dtype: type) -> None:
    values = (RAMP * (float(np.iinfo(dtype).max) * 0.999)).astype(dtype)
    assert np.abs(grey(tiff(values)) - RAMP * 255 * 0.999).max() <= 1


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_signed_samples_are_scaled_from_their_own_range(dtype: type) -> None:
    values = (RAMP * 100 - 40).round().astype(dtype)
    assert np.abs(grey(tiff(values)) - (values.astype(float) + 40) * 2.55).max() <= 0.5
    assert "signed samples: scaled from -40..60" in decoded(tiff(values)).notes[0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("low", "high", "taken"), [(0.1, 0.9, (0, 1)), (-1.0, 3.0, (-1, 3)), (0.0, 1000.0, (0, 1000))])
def test_floats_are_fractions_or_scaled_from_their_own_range(
    dtype: type, low: float, high: float, taken: tuple[float, float]
) -> None:
    values = (low + RAMP * (high - low)).astype(dtype)
    expected = (values.astype(np.float64) - taken[0]) * 255 / (taken[1] - taken[0])
    assert np.abs(grey(tiff(values)) - expected).max() <= 0.51


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("bands", [2, 3, 4, 7])
def test_of_many_bands_the_first_three_are_colours(bands: int, dtype: type, planar: str) -> None:
    top = 1 if dtype is np.float32 else np.iinfo(dtype).max
    values = np.stack([RAMP * (band + 1) / bands * top for band in range(bands)], axis=2).astype(dtype)
    stored = values if planar == "contig" else values.transpose(2, 0, 1)
    result = decoded(tiff(stored, planarconfig=planar, extrasamples=(0,) * (bands - 1)))
    taken = values[:, :, [0, 0, 0] if bands == 2 else [0, 1, 2]]
    assert np.abs(result.image_rgb_hwc_u8 - taken.astype(float) * 255 / top).max() <= 1
    meant = "the first is grey" if bands == 2 else "the first three are red, green and blue"
    assert f"{bands} bands: {meant}" in result.notes


def test_a_fourth_band_is_no_transparency_unless_the_file_says_so() -> None:
    values = np.stack([corpus.scene()[:, :, i] for i in (0, 1, 2, 0)], axis=2)
    loose = decoded(tiff(values, photometric="rgb", extrasamples=(0,)))
    np.testing.assert_array_equal(loose.image_rgb_hwc_u8, corpus.scene())
    said = decoded(tiff(values, photometric="rgb", extrasamples=("unassalpha",)))
    assert "transparent: composited on white" in said.notes


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_deep_transparency_is_composited_on_white(dtype: type, kind: str) -> None:
    top = 1.0 if dtype is np.float32 else 65_535
    values = np.zeros((4, 4, 4), np.float64)
    values[:, :, 0], values[:, :, 3] = (0.25 if kind == "assocalpha" else 1.0), 0.25  # a quarter of full red
    result = decoded(tiff((values * top).astype(dtype), photometric="rgb", extrasamples=(kind,)))
    np.testing.assert_allclose(result.image_rgb_hwc_u8[0, 0], (255, 191, 191), atol=2)


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (RAMP.astype(np.complex64), {}, "1 band of 64-bit complex samples"),
        ((RAMP * 9).astype(np.uint16), {"photometric": 32803}, "CFA"),
    ],
)
def test_what_is_not_read_is_called_not_supported(values: np.ndarray, options: dict[str, Any], words: str) -> None:
    failure = decode_image(tiff(values, **options)).failure
    assert failure is not None
    assert failure.error_type == "UnsupportedFormat"
    assert failure.error.endswith("is not supported")
    assert words in failure.error


def test_camera_raw_is_not_its_thumbnail() -> None:
    data = tiff(corpus.scene(), photometric="rgb", extratags=[(50706, "B", 4, b"\x01\x04\x00\x00", True)])
    failure = decode_image(data).failure
    assert failure is not None
    assert failure.error == "camera raw (DNG) is not supported"


def test_deep_files_keep_their_orientation_and_their_pages() -> None:
    values = (RAMP * 65_535).astype(np.uint16)
    turned = decoded(tiff(values, extratags=[(274, "H", 1, 6, True)]))
    assert turned.size_hw == (64, 48)
    np.testing.assert_array_equal(turned.image_rgb_hwc_u8[:, :, 0], np.rot90(values >> 8, -1))
    pages = decoded(tiff(np.stack([values, values // 2]), photometric="minisblack"))
    np.testing.assert_array_equal(pages.image_rgb_hwc_u8[:, :, 0], values >> 8)
    assert pages.notes[0] == "multi-page: first of 2 pages"


def test_limits_are_asked_before_unpacking() -> None:
    data = tiff((RAMP * 65_535).astype(np.uint16))
    failure = decode_image(data, options=DecodeOptions(max_pixels=48 * 64 - 1)).failure
    assert failure is not None
    assert failure.error_type == "TooManyPixels"
    hungry = tiff(np.zeros((48, 64, 40), np.uint8), extrasamples=(0,) * 39)
    failure = decode_image(hungry, options=DecodeOptions(max_pixels=48 * 64)).failure
    assert failure is not None
    assert failure.error_type == "UnsupportedFormat"


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("rows", [4, 48])
def test_no_cut_deep_file_passes_for_a_whole_one(dtype: type, compression: str, rows: int) -> None:
    values = np.random.default_rng(3).integers(0, 60_000, (48, 64)).astype(dtype)
    data = tiff(values, compression=compression, rowsperstrip=rows)
    assert decode_image(data).failure is None
    for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        assert decode_image(data[: int(len(data) * share)]).failure is not None
