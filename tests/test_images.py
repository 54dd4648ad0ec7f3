"""Decoding: what comes out is upright RGB, or a `PictureError` that names the file."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskcls import images
from maskcls.errors import PictureError
from maskcls.images import (
    MAX_BYTES,
    MAX_PIXELS,
    _decode_plain_jpeg,
    content_digest,
    decode,
    decode_pixels,
    is_image_file,
    read_bytes,
    read_image,
    to_upright,
)

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 24, 3), dtype=np.uint8)
EXIF_ORIENTATION = 274


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def decoded(content: bytes) -> np.ndarray:
    image = decode(content, "a.jpg")
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    np.testing.assert_array_equal(decode_pixels(content, "a.jpg"), pixels)
    return pixels


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM"])
def test_lossless_pictures_come_back(kind: str) -> None:
    assert np.array_equal(decoded(encoded(Image.fromarray(PIXELS), kind)), PIXELS)


def test_the_extension_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(Image.fromarray(PIXELS), "PNG"))
    assert np.array_equal(np.asarray(read_image(path)), PIXELS)


SMOOTH = Image.fromarray(PIXELS).resize((149, 203), Image.Resampling.BICUBIC)
"""With detail at all scales and odd sides: what a JPEG of a photo has."""


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"quality": 35}, {"progressive": True}, {"exif": b""}])
def test_the_fast_decoder_gives_pillows_pixels(subsampling: int, options: dict[str, Any]) -> None:
    content = encoded(SMOOTH, "JPEG", subsampling=subsampling, **options)
    fast = _decode_plain_jpeg(content)
    assert fast is not None  # or nothing is compared
    np.testing.assert_array_equal(fast, decoded(content))


def test_without_the_fast_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(SMOOTH, "JPEG")
    expected = decoded(content)
    monkeypatch.setattr(images, "simplejpeg", None)
    np.testing.assert_array_equal(decode_pixels(content, "a.jpg"), expected)


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0), st.integers(0, 4), st.booleans())
def test_damaged_jpegs_are_to_both_decoders_what_they_are_to_pillow(
    seed: int, kept: float, flips: int, progressive: bool
) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(encoded(SMOOTH, "JPEG", progressive=progressive))
    for place in rng.integers(2, len(content), flips):
        content[place] = rng.integers(256)
    damaged = bytes(content[: int(kept * len(content))] if seed % 2 else content)
    try:
        expected = np.asarray(decode(damaged, "a.jpg"))
    except PictureError as error:
        with pytest.raises(PictureError, match=re.escape(str(error))):
            decode_pixels(damaged, "a.jpg")
    else:
        np.testing.assert_array_equal(decode_pixels(damaged, "a.jpg"), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.95])
def test_truncated(kind: str, part: float) -> None:
    content = encoded(Image.fromarray(PIXELS), kind)
    with pytest.raises(PictureError, match=r"^here/a\.jpg: "):
        decode(content[: int(len(content) * part)], "here/a.jpg")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation: int) -> None:
    undo = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x),
    }
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    content = encoded(Image.fromarray(PIXELS), "PNG", exif=exif)
    assert np.array_equal(decoded(content), undo[orientation](PIXELS))
    # Whoever reads what was read does not turn it once more.
    again = to_upright(decode(content, "a.png"), "a.png")
    assert np.array_equal(np.asarray(again), undo[orientation](PIXELS))


def test_odd_tags_beside_the_rotation_do_no_harm() -> None:
    """As scanners and editors leave them: no reader needs them to turn the picture."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    exif[282] = 72.0  # XResolution
    exif[296] = 2  # ResolutionUnit, a SHORT
    content = encoded(SMOOTH, "JPEG", exif=exif)
    right = np.asarray(decode(content, "a.jpg"))
    entry = struct.pack(">HHIHxx", 296, 3, 1, 2)
    assert content.count(entry) == 1
    odd = content.replace(entry, struct.pack(">HHII", 296, 5, 1, 8))  # a fraction, which it is not
    assert right.shape == (149, 203, 3)
    np.testing.assert_array_equal(decoded(odd), right)


@pytest.mark.parametrize("kind", ["WEBP", "JPEG"])
def test_only_exif_turns_a_picture(kind: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    content = encoded(SMOOTH, kind, xmp=xmp)
    with Image.open(io.BytesIO(content)) as image:
        assert image.getexif()[EXIF_ORIENTATION] == 6  # as Pillow has it
    assert decoded(content).shape == (203, 149, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_damaged_exif_is_none(kind: str) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    content = encoded(SMOOTH, kind, exif=exif.tobytes().replace(b"MM\0*", b"no\0*"))
    assert decoded(content).shape == (203, 149, 3)


def test_transparent_parts_become_white() -> None:
    alpha = np.zeros((*PIXELS.shape[:2], 1), dtype=np.uint8)
    alpha[:20] = 255
    pixels = decoded(encoded(Image.fromarray(np.concatenate([PIXELS, alpha], 2)), "PNG"))
    assert np.array_equal(pixels[:20], PIXELS[:20])
    assert (pixels[20:] == 255).all()


def test_palette() -> None:
    image = Image.fromarray(PIXELS).quantize(16)
    assert np.array_equal(decoded(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


def test_palette_with_a_transparent_colour() -> None:
    image = Image.fromarray(PIXELS).quantize(16)
    pixels = decoded(encoded(image, "PNG", transparency=3))
    assert (pixels[np.asarray(image) == 3] == 255).all()


def test_a_colour_that_is_transparent() -> None:
    """The PNG has no alpha: a chunk of its own says so."""
    pixels = PIXELS.copy()
    pixels[3, 5] = pixels[7, 9] = 0, 255, 0
    expected = pixels.copy()
    expected[3, 5] = expected[7, 9] = 255
    image = Image.fromarray(pixels)
    assert np.array_equal(decoded(encoded(image, "PNG", transparency=(0, 255, 0))), expected)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 3
    turned = decoded(encoded(image, "PNG", transparency=(0, 255, 0), exif=exif))
    assert np.array_equal(turned, expected[::-1, ::-1])


def test_a_grey_level_that_is_transparent() -> None:
    levels = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    pixels = decoded(encoded(Image.fromarray(levels), "PNG", transparency=257))
    assert pixels[0, :, 0].tolist() == [0, 255, 127, 255]
    levels = np.array([[0, 7, 128, 255]], dtype=np.uint8)
    pixels = decoded(encoded(Image.fromarray(levels), "PNG", transparency=128))
    assert pixels[0, :, 0].tolist() == [0, 7, 255, 255]


def test_a_16_bit_colour_that_is_transparent() -> None:
    colours = np.array([[0x1234, 0x5678, 0x9ABC], [0x3412, 0x7856, 0xBC9A]], dtype=">u2")
    content = png(2, 1, 16, 2, b"\0" + colours.tobytes(), tRNS=colours[0].tobytes())
    assert decoded(content).tolist() == [[[255, 255, 255], [0x34, 0x78, 0xBC]]]
    with Image.open(io.BytesIO(content)) as image:
        before = image.info["transparency"]
        for _ in range(2):
            assert np.asarray(to_upright(image, "a.png"))[0, 0].tolist() == [255, 255, 255]
        assert image.info["transparency"] == before


def test_cmyk() -> None:
    grey = Image.new("RGB", (16, 16), (200, 100, 50))
    pixels = decoded(encoded(grey.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 6


def test_grey() -> None:
    pixels = decoded(encoded(Image.fromarray(PIXELS[..., 0]), "PNG"))
    assert np.array_equal(pixels, np.repeat(PIXELS[..., :1], 3, axis=2))


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    assert decoded(encoded(Image.fromarray(levels), "PNG"))[0, :, 0].tolist() == [0, 1, 127, 255]


def png(width: int, height: int, bits: int, kind: int, rows: bytes, **more: bytes) -> bytes:
    """A PNG of any header and rows; `more`: chunks before these."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = {"IHDR": header, **more, "IDAT": zlib.compress(rows), "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(n.encode(), d) for n, d in chunks.items())


def bomb(side: int) -> bytes:
    """A PNG that claims side × side pixels and holds hardly any."""
    return png(side, side, 8, 0, b"\0" * 1000)


@pytest.mark.parametrize("side", [int(MAX_PIXELS**0.5) + 1, 12_000, 30_000])
def test_bombs_are_refused(side: int) -> None:
    with pytest.raises(PictureError, match=r"bomb\.png.*pixels"):
        decode(bomb(side), "bomb.png")


def test_a_row_that_pillow_cannot_count_is_no_lack_of_memory() -> None:
    with pytest.raises(PictureError, match=r"long\.png: 45000000x1 pixels; a side of more than"):
        decode(png(45_000_000, 1, 16, 2, b"\0" * 1000), "long.png")


@pytest.mark.parametrize("step", ["open", "alpha_composite"])
def test_too_little_memory_is_no_fault_of_the_picture(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded(Image.fromarray(PIXELS).convert("RGBA"), "PNG")

    def fail(*args: Any, **options: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Image, step, fail)
    for read in (decode, decode_pixels):
        with pytest.raises(MemoryError, match=r"^a\.png: out of memory$"):
            read(content, "a.png")


@pytest.mark.parametrize("content", [b"", b"\0", b"hello", b"%PDF-1.4 ...", b"\xff\xd8\xff\xe0"])
def test_no_picture(content: bytes) -> None:
    with pytest.raises(PictureError, match=r"a\.jpg"):
        decode(content, "a.jpg")


def test_animated_gif_is_refused() -> None:
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(PictureError, match="not a picture in a known format"):
        decode(content, "a.gif")


def test_missing_empty_and_folders(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    for name, reason in (
        ("missing.jpg", "no such file"),
        ("empty.jpg", "the file is empty"),
        ("folder.jpg", "not a regular file"),
    ):
        with pytest.raises(PictureError, match=f"{name}: {reason}"):
            read_bytes(tmp_path / name)


def test_a_file_that_is_no_picture_by_its_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "film.jpg"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1_000_000)
    with pytest.raises(PictureError, match=r"film\.jpg: 501 MB are more than the 500 "):
        read_bytes(path)


def test_too_little_memory_for_a_file_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> bytes:
        raise MemoryError

    (tmp_path / "a.jpg").write_bytes(b"x")
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(MemoryError, match=r"a\.jpg: out of memory$"):
        read_bytes(tmp_path / "a.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PictureError, match="not a regular file"):
        read_image(tmp_path / "pipe.jpg")


@pytest.mark.parametrize(
    ("name", "answer"),
    [("a.jpg", True), ("b/A.JPEG", True), ("a.png", True), ("a.gif", False), ("jpg", False)],
)
def test_is_image_file(name: str, answer: bool) -> None:
    assert is_image_file(name) is answer


def test_content_digest() -> None:
    assert content_digest(b"a") == content_digest(b"a") != content_digest(b"b")
