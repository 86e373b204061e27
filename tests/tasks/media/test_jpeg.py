"""JPEGs: the pixels are Pillow's byte for byte, and libjpeg's own warnings decide what is damaged."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from tasks.media.images import Frame, decode_image
from tasks.media.options import DecodeOptions
from tasks.records import ItemFailure
from tests import corpus

KEEP = DecodeOptions(damaged="keep")


def decoded(data: bytes, options: DecodeOptions = DecodeOptions()) -> Frame:  # noqa: B008 - frozen
    result = decode_image(data, options=options)
    assert result.failure is None, result.failure
    return result


def failed(data: bytes) -> ItemFailure:
    result = decode_image(data).failure
    assert result is not None
    return result


def noise(size_hw: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (*size_hw, 3)).astype(np.uint8)


def jpeg(pixels: np.ndarray, mode: str = "RGB", **options: object) -> bytes:
    return corpus.encoded(Image.fromarray(pixels).convert(mode), "JPEG", **options)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size_hw", [(1, 1), (8, 8), (7, 5), (17, 33), (101, 99)])
def test_every_variant_gives_the_bytes_that_pillow_gives(
    size_hw: tuple[int, int], mode: str, progressive: bool
) -> None:
    variants = itertools.product((30, 95), (0, 1, 2, "4:1:1"), ({}, {"restart_marker_blocks": 2}, {"optimize": True}))
    for quality, subsampling, more in variants:
        data = jpeg(noise(size_hw), mode, quality=quality, subsampling=subsampling, progressive=progressive, **more)
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(decoded(data).image_rgb_hwc_u8, np.asarray(image.convert("RGB")))


def test_a_jpeg_that_stores_red_green_and_blue_themselves_gives_pillows_bytes() -> None:
    data = jpeg(noise((40, 50)), keep_rgb=True)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decoded(data).image_rgb_hwc_u8, np.asarray(image))


def damaged() -> dict[str, bytes]:
    whole = jpeg(corpus.scene((240, 320)), quality=90)
    middle, half = len(whole) // 2, bytearray(whole)
    half[middle : middle + 40] = b"\x00\x7f" * 20
    return {"cut, with an end marker": whole[:middle] + b"\xff\xd9", "a damaged middle": bytes(half)}


@pytest.mark.parametrize("name", damaged())
def test_damage_that_ends_in_an_end_marker_is_a_failed_item_or_kept_with_a_note(name: str) -> None:
    data = damaged()[name]
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # Pillow takes it without a word
        expected = np.asarray(image)
    failure = failed(data)
    assert failure.error_type == "CorruptImage"
    assert "Corrupt JPEG data" in failure.error
    kept = decoded(data, KEEP)
    assert "Corrupt JPEG data" in kept.notes[0]
    np.testing.assert_array_equal(kept.image_rgb_hwc_u8, expected)


def test_an_error_behind_which_no_pixels_were_written_fails_even_where_damage_is_kept() -> None:
    whole = bytearray(jpeg(corpus.scene((240, 320)), progressive=True, quality=90))
    tables = [i for i in range(len(whole) - 1) if whole[i : i + 2] == b"\xff\xc4"]
    whole[tables[-1] + 5 : tables[-1] + 21] = b"\xff" * 16  # counts of a Huffman table that cannot be
    assert decode_image(bytes(whole), options=KEEP).failure is not None


@pytest.mark.parametrize("progressive", [False, True])
def test_a_file_that_lacks_nothing_but_its_end_marker_is_whole(progressive: bool) -> None:
    data = jpeg(corpus.scene((240, 320)), progressive=progressive)
    assert data.endswith(b"\xff\xd9")
    result = decoded(data[:-2])
    np.testing.assert_array_equal(result.image_rgb_hwc_u8, decoded(data).image_rgb_hwc_u8)
    assert result.notes == ("the end marker is missing: read as if it were there",)


def scans_of(data: bytes) -> list[int]:
    """Where the scans of a progressive file begin, after its tables (Pillow writes one before each scan)."""
    return [i for i in range(len(data) - 1) if data[i : i + 2] == b"\xff\xda"]


def test_a_progressive_file_that_was_cut_between_two_scans_is_not_whole() -> None:
    data = jpeg(corpus.scene((240, 320)), progressive=True)
    ends = [data.rindex(b"\xff\xc4", 0, start) for start in scans_of(data)[2:]]  # before the tables of each scan
    for end in ends:
        assert failed(data[:end]).error_type == "TruncatedImage"
        # with an end marker every decoder takes it: the picture is coarse, and the row says so
        assert decoded(data[:end] + b"\xff\xd9").notes == ("progressive without its last scans: details are coarse",)


def test_a_cut_in_the_thumbnail_of_a_file_is_not_taken_for_its_end() -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 300 + "\xff\xd9\xff\xda"
    data = jpeg(corpus.scene((240, 320)), exif=exif.tobytes())
    assert failed(data[: len(data) * 2 // 3]).error_type == "TruncatedImage"
    assert decoded(data[:-2]).notes == ("the end marker is missing: read as if it were there",)


def test_large_texts_and_profiles_harm_nobody() -> None:
    data = jpeg(corpus.scene(), comment=b"c" * 60_000)
    app13 = b"\xff\xed\xff\xff" + bytes(65_533)
    assert decoded(data[:2] + app13 * 60 + data[2:]).notes == ()


def test_oddities_of_a_header_are_notes() -> None:
    data = jpeg(corpus.scene())
    at = data.index(b"JFIF\x00")
    newer = data[: at + 5] + b"\x09" + data[at + 6 :]
    assert decoded(newer).notes == ("libjpeg: Warning: unknown JFIF revision number 9.01",)


def test_densities_that_differ_say_that_pixels_are_not_square() -> None:
    assert decoded(jpeg(corpus.scene(), dpi=(72, 36))).notes == ("pixels are not square (36:72): shown as stored",)
    assert decoded(jpeg(corpus.scene(), dpi=(72, 72))).notes == ()


CMYK = np.random.default_rng(1).integers(0, 255, (240, 320, 4)).astype(np.uint8)
PLAIN_INKS = "CMYK converted to RGB without its colour profile"
UNUSUAL = "sampled unusually: only an early end of its data would have been noticed"


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])  # with 1 and 2 Pillow subsamples the black, too
def test_a_damaged_cmyk_file_is_found_out_too(subsampling: int, progressive: bool) -> None:
    data = corpus.encoded(Image.fromarray(CMYK, "CMYK"), "JPEG", subsampling=subsampling, progressive=progressive)
    said = (UNUSUAL,) if subsampling else ()
    whole = decoded(data)
    assert whole.notes == (*said, PLAIN_INKS)
    without_end = decoded(data[:-2])
    assert without_end.notes == ("the end marker is missing: read as if it were there", *said, PLAIN_INKS)
    np.testing.assert_array_equal(without_end.image_rgb_hwc_u8, whole.image_rgb_hwc_u8)
    torn = data[: len(data) // 2]
    assert failed(torn).error_type == "TruncatedImage"
    assert failed(torn + b"\xff\xd9").error_type == "CorruptImage"
    assert decoded(torn + b"\xff\xd9", KEEP).notes[0].startswith("damaged: ")


def sampled_unusually() -> bytes:
    """Sound: the four blocks of every unit of a CMYK file, as one of Y, two of Cb and one of Cr."""
    data = corpus.encoded(Image.fromarray(CMYK, "CMYK"), "JPEG", subsampling=0)
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    size = bytes([8, 0, 240, 640 >> 8, 640 & 255])
    components = bytes([3, 1, 0x11, 0, 2, 0x21, 0, 3, 0x11, 0])  # count; id, factors and table of each
    scanned = bytes([3, 1, 0, 2, 0, 3, 0, 0, 63, 0])
    frame_end, scan_end = (at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") for at in (frame, scan))
    return (
        b"\xff\xd8"
        + data[data.index(b"\xff\xdb") : frame]
        + b"\xff\xc0\x00\x11"
        + size
        + components
        + data[frame_end:scan]
        + b"\xff\xda\x00\x0c"
        + scanned
        + data[scan_end:]
    )


def test_a_sampling_that_only_pillow_knows_is_read_and_said() -> None:
    data = sampled_unusually()
    result = decoded(data)
    assert result.notes == (UNUSUAL,)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(result.image_rgb_hwc_u8, np.asarray(image))
    assert failed(data[: len(data) // 2] + b"\xff\xd9").error_type == "CorruptImage"
    assert failed(data[: len(data) // 2]).error_type == "TruncatedImage"
