"""The page in a browser: it answers as Python does, for everybody, and nothing leaves it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskcls.images import FORMATS, decode
from maskcls.runtime import Classifier
from maskcls.runtime.classifier import Prediction

Page = Any
"""As conftest.py has it."""
Predict = Callable[[list[Path]], list[Prediction]]
WORDS = {"<30": "under 30", "30-59": "30 to 59", ">=60": "60 or over"}

# One process for all of them: it trains, exports and starts the browser.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("page")]


@pytest.fixture(scope="module")
def in_python(exported: Path) -> Iterator[Predict]:
    with Classifier(exported / "maskcls.onnx", provider="cpu") as classifier:
        yield classifier.predict


@pytest.fixture(scope="module")
def drawn(sample: Path) -> list[Path]:
    """Twenty pictures: JPEGs of strangers, PNGs of people that the networks know."""
    files = sorted((sample / "eval" / "images").iterdir())[:14]
    files += sorted((sample / "train" / "images").glob("*/*.png"))[:6]
    assert len(files) == 20
    return files


def check_answer(page: Page, expected: Prediction) -> None:
    label, probabilities = page.answer
    assert label == expected.label
    assert expected.probabilities is not None
    for name, shares in expected.probabilities.items():
        assert probabilities[name] == pytest.approx(shares, abs=1e-5)


# --- as in Python --------------------------------------------------------------------------------


def test_answers_are_those_of_python(page: Page, drawn: list[Path], in_python: Predict) -> None:
    expected = in_python(drawn)
    assert len({prediction.label for prediction in expected}) >= 3  # or it would say little
    for file, prediction in zip(drawn, expected, strict=True):
        page.choose(file)
        assert page.problem == ""
        check_answer(page, prediction)
    assert page.run("return document.body.dataset.threads") != "1"


def face(sample: Path) -> Image.Image:
    """Without a symmetry that would hide a wrong turn."""
    picture = Image.open(next((sample / "train" / "images").glob("*/normal.*"))).convert("RGB")
    picture.paste("navy", (0, 0, picture.width // 3, picture.height // 4))
    return picture


def odd_pictures(picture: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Files of every kind that Python reads specially, by what is odd about them."""

    def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("JPEG", "PNG", "WEBP"):
            yield f"orientation {orientation}, {kind}", encoded(picture, kind, exif=exif)
    transparent = picture.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(picture.size))
    yield "transparent PNG", encoded(transparent, "PNG")
    yield "transparent WebP", encoded(transparent, "WEBP", lossless=True)
    yield "palette with a transparent colour", encoded(picture.convert("P"), "PNG", transparency=3)
    grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    yield "grey of 16 bits", encoded(Image.fromarray(grey), "PNG")
    yield "grey JPEG", encoded(picture.convert("L"), "JPEG")
    yield "CMYK", encoded(picture.convert("CMYK"), "JPEG")
    yield "progressive", encoded(picture, "JPEG", progressive=True, quality=80)
    yield "BMP", encoded(picture, "BMP")
    yield "wide", encoded(picture.resize((3000, 2)), "PNG")
    yield "one pixel", encoded(picture.resize((1, 1)), "PNG")


PIXELS = """
const [content, formats, done] = arguments;
const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
import("./pixels.js").then(async ({ checkFormat, readPixels, upright }) => {
  const file = new Blob([bytes]);
  await checkFormat(file, formats);
  const { width, height, data } = await readPixels(await upright(file));
  let text = "";
  for (let at = 0; at < data.length; at += 8192) {
    text += String.fromCharCode(...data.subarray(at, at + 8192));
  }
  done([width, height, btoa(text)]);
}).catch((error) => done(String(error)));
"""


def pixels_in_browser(page: Page, content: bytes) -> np.ndarray | str:
    """uint8 (H, W, 3), or why there are none."""
    found = page.driver.execute_async_script(PIXELS, base64.b64encode(content).decode(), FORMATS)
    if isinstance(found, str):
        return found
    width, height, data = found
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 3)


def test_pixels_are_those_of_python(page: Page, sample: Path) -> None:
    for name, content in odd_pictures(face(sample)):
        expected = np.asarray(decode(content, name)).astype(int)
        found = pixels_in_browser(page, content)
        assert not isinstance(found, str), (name, found)
        assert found.shape == expected.shape, name
        assert abs(found - expected).max() <= 1, name


def test_damaged_pictures_are_refused_as_in_python(page: Page, sample: Path) -> None:
    file = io.BytesIO()
    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        file = io.BytesIO()
        face(sample).save(file, kind)
        found = pixels_in_browser(page, file.getvalue()[: file.tell() * 2 // 3])
        assert "cannot be decoded" in str(found), kind


def test_a_turned_photo_of_a_phone(
    page: Page, sample: Path, in_python: Predict, tmp_path: Path
) -> None:
    """The answer, and what is shown, stand upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("jpg", "webp"):
        path = tmp_path / f"turned.{kind}"
        face(sample).rotate(90, expand=True).save(path, exif=exif)
        page.choose(path)
        check_answer(page, in_python([path])[0])
        shown = page.run(
            "const p = document.querySelector('#picture'); return [p.naturalWidth, p.naturalHeight]"
        )
        assert shown == list(face(sample).size), kind
        assert page.find("#caption").text.endswith("384 × 512 pixels")


def test_a_photo_of_ten_megabytes(page: Page, in_python: Predict, tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    rng = np.random.default_rng(4)
    coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((4000, 3000))).astype(np.int16)
    pixels += rng.integers(-25, 26, pixels.shape, dtype=np.int16)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=97)
    assert path.stat().st_size > 10e6
    page.choose(path)
    assert page.problem == ""
    check_answer(page, in_python([path])[0])
