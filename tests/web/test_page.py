"""The page in a browser: it answers as Python does, for everybody, and nothing leaves it."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from maskcls.images import FORMATS, MAX_PIXELS, decode
from maskcls.labels import ATTRIBUTES
from maskcls.onnx.exporter import export
from maskcls.runtime import Classifier
from maskcls.runtime.classifier import Prediction
from maskcls.web.server import PageServer
from maskcls.web.site import build_site, write_site

Page = Any
"""As conftest.py has it."""
Predict = Callable[[list[Path]], list[Prediction]]
Browsing = Callable[..., AbstractContextManager[Page]]
WIDTHS = (390, 1280)  # pixels: a phone, a small laptop
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
    for name, shares in probabilities.items():
        assert shares == pytest.approx(in_order(expected, name), abs=1e-5)


def in_order(expected: Prediction, name: str) -> list[float]:
    """Python's probabilities of an attribute, in the order of `ATTRIBUTES`."""
    return [expected.probabilities[name][value] for value in ATTRIBUTES[name]]


# --- as in Python --------------------------------------------------------------------------------


def test_answers_are_those_of_python(page: Page, drawn: list[Path], in_python: Predict) -> None:
    expected = in_python(drawn)
    assert len({prediction.label for prediction in expected}) >= 3  # or it would say little
    for file, prediction in zip(drawn, expected, strict=True):
        page.choose(file)
        assert page.problem == ""
        check_answer(page, prediction)
    assert page.run("return document.body.dataset.threads") != "1"


# In 8 bits, processors round differently.
@pytest.mark.parametrize(("precision", "apart"), [("fp16", 1e-5), ("int8", 0.02)])
def test_smaller_files_answer_as_in_python(
    checkpoints: list[Path],
    fetched: Path,
    browser: Page,
    drawn: list[Path],
    serving: Callable[..., Any],
    tmp_path: Path,
    precision: str,
    apart: float,
) -> None:
    export(checkpoints, tmp_path, precision=precision, max_f1_drop=1.0, say=lambda *_: None)
    with Classifier(tmp_path / "maskcls.onnx", provider="cpu") as classifier:
        expected = classifier.predict(drawn)
    with serving(build_site(tmp_path, fetched)) as server:
        browser.open(url=server.url)
        assert f"Precision\n{precision}" in browser.find("#facts").text
        for file, prediction in zip(drawn, expected, strict=True):
            browser.choose(file)
            _, probabilities = browser.answer
            for name, shares in probabilities.items():
                assert shares == pytest.approx(in_order(prediction, name), abs=apart)


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
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    yield "orientation in XMP alone", encoded(picture, "JPEG", xmp=xmp)
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
    pixels += rng.integers(-40, 41, pixels.shape, dtype=np.int16)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=97)
    assert path.stat().st_size > 10e6
    page.choose(path)
    assert page.problem == ""
    check_answer(page, in_python([path])[0])


# --- what is no photo ----------------------------------------------------------------------------


def test_a_text_file_dropped_by_mistake(page: Page, drawn: list[Path]) -> None:
    page.choose(drawn[0])
    assert page.find("#result").is_displayed()
    page.drop("letter.txt", "Dear Sir or Madam", "text/plain")
    assert page.problem == "letter.txt: not a picture in a known format (JPEG, PNG, BMP, WEBP)"
    assert not page.find("#result").is_displayed()  # no answer about another file
    assert page.status == ""
    page.drop("얼굴.jpg", "Dear Sir or Madam", "image/jpeg")  # by its content, not its name
    assert page.problem.startswith("얼굴.jpg: not a picture")
    page.drop("face.ppm", "P6 1 1 255 abc", "image/x-portable-pixmap")  # browsers lack it
    assert page.problem.startswith("face.ppm: not a picture")
    page.drop("empty.png", "", "image/png")
    assert page.problem == "empty.png: the file is empty"
    page.choose(drawn[1])
    assert page.problem == ""
    assert page.find("#result").is_displayed()


def test_a_file_that_has_gone(page: Page, drawn: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "gone.jpg"
    path.write_bytes(drawn[0].read_bytes())
    page.run("file.addEventListener('change', () => (window.kept = file.files[0]), true)")
    page.choose(path)
    path.unlink()
    page.run(
        """const dataTransfer = new DataTransfer();
        dataTransfer.items.add(window.kept);
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true}));"""
    )
    page.wait(lambda: page.problem)
    assert page.problem == "gone.jpg: it cannot be read: a folder, or a file that has gone"
    assert page.status == ""


def test_text_without_a_file_is_told_apart(page: Page) -> None:
    page.run(
        """const dataTransfer = new DataTransfer();
        dataTransfer.setData("text/plain", "https://pictures.invalid/face.jpg");
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true}));"""
    )
    assert "Save the picture first" in page.problem


def test_too_many_pixels_are_refused(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (10_000, MAX_PIXELS // 10_000 + 1)).save(path)
    page.choose(path)
    assert page.problem.startswith("huge.png: 10000×5001 pixels are more than the 50 million")


def test_the_last_photo_has_the_last_word(
    page: Page, drawn: list[Path], in_python: Predict
) -> None:
    for file in drawn[:4]:
        page.find("#file").send_keys(str(file))
    page.wait(lambda: drawn[3].name in page.find("#caption").text and page.status.startswith("A"))
    check_answer(page, in_python([drawn[3]])[0])


# --- for everybody -------------------------------------------------------------------------------


def press(page: Page, keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(page.driver).send_keys(keys).perform()


def focused(page: Page) -> str:
    return str(page.run("return document.activeElement.id || document.activeElement.tagName"))


def test_keyboard_reaches_everything_in_order(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    order = []
    for _ in range(4):
        press(page, Keys.TAB)
        order.append(focused(page))
        outlined = page.run(
            """const focus = document.activeElement;
            const seen = focus.type === "file" ? focus.nextElementSibling : focus;
            return getComputedStyle(seen).outlineStyle"""
        )
        assert outlined == "solid", focused(page)
    assert order == ["file", "open-camera", "SUMMARY", "A"]
    page.run("document.querySelector('summary').focus()")
    press(page, Keys.ENTER)
    manifest = page.find("#manifest")
    assert manifest.is_displayed()
    press(page, Keys.TAB)
    assert focused(page) == "manifest"  # which scrolls, so that the arrow keys have to reach it


def test_keyboard_opens_the_choice_of_a_file(page: Page) -> None:
    page.driver.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": True})
    page.run("window.asked = 0; file.addEventListener('click', () => (asked += 1)); file.focus()")
    press(page, " ")
    page.wait(lambda: page.run("return asked") == 1, 5)
    page.driver.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": False})


def test_the_camera_by_keyboard(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.run("document.querySelector('#open-camera').focus()")
    press(page, Keys.ENTER)
    page.wait(lambda: focused(page) == "take")
    page.wait(lambda: page.run("return document.querySelector('video').videoWidth") > 0)
    press(page, Keys.ENTER)
    page.wait_for_answer()
    assert page.problem == ""
    assert page.find("#caption").text.startswith("camera picture, ")
    assert focused(page) == "open-camera"
    assert page.run("return document.querySelector('video').srcObject") is None  # its light is off


def test_a_camera_that_may_not_be_used(page: Page) -> None:
    page.allow_camera("denied")
    page.find("#open-camera").click()
    page.wait(lambda: page.problem, 10)
    page.allow_camera("granted")
    assert page.problem.startswith("There is no camera to use (Permission denied")
    assert not page.find("#camera").is_displayed()
    assert focused(page) == "open-camera"


def test_screen_readers_are_told(page: Page, drawn: list[Path], in_python: Predict) -> None:
    roles = {
        "#file": ("button", "Choose a photo"),
        "#open-camera": ("button", "Use the camera"),
        "#status": ("status", ""),
        "#problem": ("alert", ""),
        "main": ("main", ""),
    }
    for selector, (role, name) in roles.items():
        element = page.find(selector)
        assert (element.aria_role, element.accessible_name) == (role, name), selector
    assert page.find("html").get_attribute("lang") == "en"

    page.choose(drawn[0])
    [expected] = in_python([drawn[0]])
    said = page.status  # a live region: it is read out
    assert said.startswith(f"Answer: mask {expected.mask}, ")
    for name in ATTRIBUTES:
        shares = in_order(expected, name)
        assert f"{100 * expected.probabilities[name][getattr(expected, name)]:.1f} %" in said
        part = page.find(f"[aria-labelledby=answer-{name}]")
        assert part.accessible_name.startswith(f"{name.capitalize()}: ")
        rows = part.find_elements("css selector", "li")
        assert [row.text.split("\n")[-1] for row in rows] == [f"{100 * s:.1f} %" for s in shares]
    assert page.find("#picture").accessible_name == f"The photo {drawn[0].name}"
    levels = [
        int(heading.tag_name[1])
        for heading in page.driver.find_elements("css selector", "h1, h2, h3")
    ]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))


CONTRAST = """
const light = (text) => {
  const [r, g, b] = text.match(/[\\d.]+/g).map((part) => {
    const level = part / 255;
    return level <= 0.04045 ? level / 12.92 : ((level + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const paper = (element) => {
  const colour = getComputedStyle(element).backgroundColor;
  return colour.startsWith("rgba(0, 0, 0, 0") && element.parentElement
    ? paper(element.parentElement) : colour;
};
const seen = [...document.querySelectorAll("body *")].filter(
  (element) => element.offsetParent && [...element.childNodes].some(
    (node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim()));
return seen.map((element) => {
  const [a, b] = [light(getComputedStyle(element).color), light(paper(element))];
  return [element.outerHTML.slice(0, 60), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(page: Page, drawn: list[Path], scheme: str) -> None:
    """4.5 to 1, as WCAG 2 asks of text (level AA)."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.choose(drawn[0])
    page.run("document.querySelector('#problem').textContent = 'face.jpg: not a picture'")
    ratios = page.run(CONTRAST)
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(ratios) > 20
    for element, ratio in ratios:
        assert ratio >= 4.5, element


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(
    browser: Page, drawn: list[Path], tmp_path: Path, width: int
) -> None:
    browser.open(width)
    wide = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"

    def check() -> None:
        whole, visible = browser.run(wide)
        assert width - 20 <= visible <= width  # less a scroll bar
        assert whole <= visible

    check()
    browser.drop("x" * 200 + ".txt", "text", "text/plain")
    check()
    path = tmp_path / ("가" * 60 + ".png")
    Image.open(drawn[0]).resize((2000, 300)).save(path)
    browser.choose(path)
    browser.find("summary").click()
    check()
    for button in browser.driver.find_elements("css selector", "button, .choice label"):
        if button.is_displayed():
            assert button.size["height"] >= 44  # pixels, for a finger
    browser.find("#open-camera").click()
    browser.wait(lambda: browser.run("return document.querySelector('video').videoWidth") > 0)
    check()


# --- where it runs -------------------------------------------------------------------------------


def requests_by_pages(log: Path) -> set[tuple[str, str]]:
    """(host, path) of all that pages asked for, also from workers, out of Chromium's own record."""
    events = json.loads(log.read_text("utf-8"))["events"]
    started = [event.get("params", {}) for event in events]
    urls = [
        urlsplit(params["url"])
        for params in started
        if "url" in params and params.get("initiator", "not an origin") != "not an origin"
    ]
    return {(url.netloc, url.path) for url in urls}


def refused_by_policy(page: Page) -> str:
    """What the page's own policy forbids of a request to elsewhere, not the network."""
    refused = page.driver.execute_async_script(
        """const done = arguments[0];
        document.addEventListener("securitypolicyviolation", (e) => done(e.blockedURI));
        fetch("http://elsewhere.invalid/photo").catch(() => setTimeout(done, 1000, "?"));"""
    )
    return str(refused)


def test_nothing_is_asked_of_anybody_else(
    server: PageServer, drawn: list[Path], browsing: Browsing, tmp_path: Path
) -> None:
    log = tmp_path / "net.json"
    with browsing(server.url, tmp_path / "profile", f"--log-net-log={log}") as page:
        page.open()
        page.choose(drawn[0])
        assert page.problem == ""
        assert refused_by_policy(page).startswith("http://elsewhere.invalid")
        # A page of somebody else, that the log would show a request elsewhere.
        page.driver.get("data:text/html,<img src='http://other.invalid/pixel.png'>")
    asked = requests_by_pages(log)
    assert ("other.invalid", "/pixel.png") in asked
    own = {path for host, path in asked if host == f"127.0.0.1:{server.port}"}
    assert {"/maskcls.onnx", "/worker.js"} <= own
    assert any(path.endswith(".wasm") for path in own)
    assert {host for host, _ in asked} == {f"127.0.0.1:{server.port}", "other.invalid"}


def test_browsers_have_nothing_to_complain_of(page: Page, drawn: list[Path]) -> None:
    page.driver.get_log("browser")  # of the tests before
    page.open()
    page.choose(drawn[0])
    assert page.driver.get_log("browser") == []


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


def test_a_plain_file_server_does(
    site: dict[str, bytes], browser: Page, drawn: list[Path], in_python: Predict, tmp_path: Path
) -> None:
    """What --out writes, in some folder of it. Without the headers of our own server there is one
    thread, and the page's own policy still holds."""
    write_site(site, tmp_path / "faces")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        thread = threading.Thread(target=files.serve_forever)
        thread.start()
        try:
            browser.open(url=f"http://127.0.0.1:{files.server_port}/faces/")
            browser.choose(drawn[0])
            check_answer(browser, in_python([drawn[0]])[0])
            assert browser.run("return document.body.dataset.threads") == "1"
            assert refused_by_policy(browser).startswith("http://elsewhere.invalid")
        finally:
            files.shutdown()
            thread.join()


def test_the_manifest_is_shown(page: Page, site: dict[str, bytes]) -> None:
    page.find("summary").click()
    shown = json.loads(page.find("#manifest").text)
    assert shown == json.loads(site["model.json"])["manifest"]
    assert [network["task"] for network in shown["networks"]] == ["mask_gender", "age"]
    facts = page.find("#facts").text
    assert "macro F1" in facts and "48 × 40 pixels" in facts and "calibrated" in facts


def test_a_model_that_breaks_off_is_told(
    site: dict[str, bytes], browser: Page, serving: Callable[..., Any]
) -> None:
    with serving({**site, "maskcls.onnx": site["maskcls.onnx"][:-1000]}) as broken:
        browser.driver.get(broken.url)
        browser.wait(lambda: browser.problem)
        reason = browser.problem
        assert reason.startswith("The networks cannot run in this browser: maskcls.onnx:")
        browser.run("document.querySelector('#problem').textContent = ''")
        browser.drop("a.jpg", "", "image/jpeg")  # whoever did not read it is told again
        assert browser.problem == reason
        assert browser.status == ""
