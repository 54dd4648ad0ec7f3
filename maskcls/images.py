"""One picture file → upright uint8 RGB pixels, or a `PictureError` that names the file.

The only place where pictures are decoded: training, checking, labelling and scoring all see the
same pixels. What plain `Image.open(path).convert("RGB")` gets wrong is handled here: EXIF rotation,
transparency, 16-bit grey, truncated files, decompression bombs and formats nobody meant to read.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from maskcls.errors import PictureError

try:
    import simplejpeg
except ImportError:  # an extra; Pillow decodes everything
    simplejpeg = None

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM")
"""What Pillow may try, told by the file's content."""

MAX_PIXELS = 50_000_000
"""Larger pictures are refused before their pixels are decoded: 50 MP is a large camera picture,
and a PNG of 17 KB can claim 144 MP."""
MAX_SIDE = 65_535
"""As JPEG has it. Pillow takes a row of more bits than it can count for too little memory."""
MAX_BYTES = 500_000_000
"""Larger files are not read: a film, or a disk's image, under a picture's name. `MAX_PIXELS` of
8 bytes, the most that one has without compression, are fewer."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by EXIF's `Orientation`."""


def is_image_file(filename: str | Path) -> bool:
    """Whether the file's name ends like a picture's, in any case."""
    return Path(filename).suffix.lower() in IMAGE_EXTENSIONS


def read_bytes(path: Path) -> bytes:
    """The file's content.

    Raises:
        PictureError: not a regular file (a FIFO would block for ever), unreadable, empty, or
            larger than `MAX_BYTES`.
        MemoryError: there is no room for it.
    """
    try:
        if not path.is_file():
            reason = "not a regular file" if path.exists() else "no such file"
            raise PictureError(f"{path}: {reason}")
        if too_large := excess(path.stat().st_size):
            raise PictureError(f"{path}: {too_large}")
        content = path.read_bytes()
    except OSError as error:
        raise PictureError(f"{path}: {error.strerror or error}") from error
    except MemoryError:
        raise MemoryError(f"{path}: out of memory") from None
    if not content:
        raise PictureError(f"{path}: the file is empty")
    return content


def excess(size: int) -> str:
    """Why a file of so many bytes is not read; "" where it is."""
    if size <= MAX_BYTES:
        return ""
    return f"{size / 1e6:,.0f} MB are more than the {MAX_BYTES / 1e6:,.0f} that a picture can have"


def content_digest(content: bytes) -> str:
    """What names a picture by its bytes, wherever it lies: sha256, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def picture_digest(path: Path) -> str:
    """`content_digest` of a picture file; "" where it cannot be read."""
    try:
        return content_digest(read_bytes(path))
    except PictureError:
        return ""


def decode(content: bytes, name: str | Path) -> Image.Image:
    """File content → upright `RGB` picture. `name` is used in messages only.

    Raises:
        PictureError: no known format, damaged, truncated, or larger than `MAX_PIXELS`.
        MemoryError: there is no room for its pixels.
    """
    try:
        opened = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise PictureError(
            f"{name}: not a picture in a known format ({', '.join(FORMATS)})"
        ) from None
    except MemoryError:  # see `to_upright`
        raise MemoryError(f"{name}: out of memory") from None
    except Exception as error:  # see `to_upright`
        raise PictureError(f"{name}: cannot be decoded: {error}") from error
    with opened:
        return to_upright(opened, name)


def to_upright(image: Image.Image, name: str | Path) -> Image.Image:
    """A picture as Pillow opened it, of any mode → upright `RGB` picture.

    Raises:
        PictureError: damaged, truncated, empty, or larger than `MAX_PIXELS` or `MAX_SIDE`.
        MemoryError: there is no room for its pixels.
    """
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"{name}: {width}x{height} pixels are more than the "
            f"{MAX_PIXELS // 1_000_000} million that are decoded; make it smaller first"
        )
    if max(width, height) > MAX_SIDE:
        raise PictureError(
            f"{name}: {width}x{height} pixels; a side of more than {MAX_SIDE:,} is not decoded"
        )
    if not width * height:
        raise PictureError(f"{name}: has no pixels ({width}x{height})")
    try:
        image.load()  # all of it: verify() lets truncated files pass
        return _to_rgb(_turned(image))
    except MemoryError:  # the machine's fault: the picture may be a good one
        raise MemoryError(f"{name}: out of memory") from None
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, EOFError, ... on
        # damaged files; for the caller they all mean the same.
        raise PictureError(f"{name}: cannot be decoded: {error}") from error


def decode_pixels(content: bytes, name: str | Path) -> np.ndarray:
    """As `decode`, the same pixels: uint8 (height, width, 3). Faster, where the package simplejpeg
    is installed and the picture is a plain JPEG.

    Raises:
        PictureError: as `decode`.
    """
    pixels = _decode_plain_jpeg(content)
    return np.asarray(decode(content, name)) if pixels is None else pixels


def _decode_plain_jpeg(content: bytes) -> np.ndarray | None:
    """None for whatever is not upright, RGB and flawless: Pillow has the last word on that.

    Both use libjpeg-turbo; Pillow unpacks its lines into 4 bytes a pixel and packs them again.
    """
    if simplejpeg is None or not content.startswith(b"\xff\xd8"):
        return None
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            width, height = image.size
            upright = _orientation(image) not in _TURNS
            if image.mode != "RGB" or not upright or width * height > MAX_PIXELS:
                return None
        pixels: np.ndarray = simplejpeg.decode_jpeg(content, "RGB", strict=True)
    except Exception:  # as above: many kinds of them, and `decode` finds out which
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def read_image(path: Path) -> Image.Image:
    """Picture file → upright `RGB` picture.

    Raises:
        PictureError: as `read_bytes` and `decode`.
    """
    return decode(read_bytes(path), path)


def _turned(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose, which writes all tags anew: one odd tag that nobody needs, and
    # the picture could not be read.
    turn = _TURNS.get(_orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    del turned.info["exif"]  # it would be turned again by whoever reads it next
    return turned


def _orientation(image: Image.Image) -> Any:
    """1 to 8, by its EXIF alone, as browsers and viewers go. Pillow's `getexif` would take one from
    XMP, too, which tools leave behind when they turn a picture."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif") or b"")
        return exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # as damaged as a picture can be: see `to_upright`
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    key = image.info.get("transparency")  # a PNG without alpha may name a colour that is none
    if image.mode == "RGB":
        if not isinstance(key, tuple):
            return image
        if max(key) > 255:  # of 16 bits, of which Pillow has kept the upper 8
            image = image.copy()  # the caller keeps theirs
            image.info["transparency"] = tuple(level >> 8 for level in key)
    if image.mode.startswith("I"):
        # 16-bit grey: convert("RGB") would clip everything above 255 to white.
        grey = np.asarray(image, dtype=np.uint32)
        levels = (grey.clip(0, 65535) // 257).astype(np.uint8)
        if isinstance(key, int):
            levels[grey == key] = 255  # on white, as below
        return Image.fromarray(levels, "L").convert("RGB")
    if image.has_transparency_data:
        # On white, as a browser would show it; dropping alpha reveals whatever colour lay hidden.
        layered = image.convert("RGBA")
        backdrop = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(backdrop, layered).convert("RGB")
    return image.convert("RGB")
