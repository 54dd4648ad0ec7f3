"""The page with networks that were trained for it, its server, and a browser that looks at it.

Without Chromium, chromedriver or onnxruntime-web, which `cli/demo.py --fetch` gets, these tests are
skipped, which says why. They are of one xdist group, so that one process trains and exports.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from maskcls.config import resolve
from maskcls.data.sample import make_sample
from maskcls.files import cache_folder
from maskcls.labels import ATTRIBUTES
from maskcls.onnx.exporter import export
from maskcls.training import train
from maskcls.web.server import PageServer
from maskcls.web.site import build_site
from maskcls.web.vendor import is_fetched

SETTINGS = {
    "weights": "none",
    "model": "base",
    "epochs": 3,
    "batch_size": 14,
    "lr": 0.004,
    "warmup_epochs": 0.0,
    "ema_decay": 0.0,
    "augmentation": "BaseAugmentation",
    "calibration": "temperature",
}
"""Seconds of training. The answers vary, and crop, mirror images and calibration take part."""

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--use-fake-device-for-media-stream",  # a camera that shows a moving pattern
    # Whatever is not this machine is asked from a proxy that is not there.
    *("--proxy-server=http://127.0.0.1:9", "--proxy-bypass-list=127.0.0.1"),
)


def find_program(*names: str) -> str:
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"needs {names[0]} to look at the page; there is none here")
    return program


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("web") / "sample"
    return make_sample(root, people=18, eval_people=6, progress=False)


@pytest.fixture(scope="session")
def checkpoints(sample: Path) -> list[Path]:
    """Of two networks, with different input sizes."""
    found = []
    for task, height, width in (("mask_gender", 48, 40), ("age", 40, 32)):
        own = {"height": height, "width": width, "cache": str(sample.parent / "cache")}
        places = {"data_dir": (str(sample / "train"),), "model_dir": str(sample.parent / "runs")}
        config = resolve(task, "scratch", flags=SETTINGS | own | places)
        found.append(train(config, lambda _: None).folder / "best.pt")
    return found


@pytest.fixture(scope="session")
def exported(checkpoints: list[Path], sample: Path) -> Path:
    """The folder of an export: each network, and the fused file."""
    export(checkpoints, sample.parent / "onnx", say=lambda *_: None)
    return sample.parent / "onnx"


@pytest.fixture(scope="session")
def fetched() -> Path:
    """The user's cache folder, with onnxruntime-web in it."""
    cache = cache_folder("auto")
    if not is_fetched(cache):
        pytest.skip("needs onnxruntime-web; python cli/demo.py --fetch gets it, once")
    return cache


@pytest.fixture(scope="session")
def site(exported: Path, fetched: Path) -> dict[str, bytes]:
    return build_site(exported, fetched)


@contextmanager
def serve(site: dict[str, bytes]) -> Iterator[PageServer]:
    with PageServer(site, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def server(site: dict[str, bytes]) -> Iterator[PageServer]:
    with serve(site) as running:
        yield running


class Page:
    """What somebody does with the page, and what they see."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        self.url = url

    def open(self, width: int = 1280, height: int = 1000, url: str = "") -> None:
        """Anew, in a window of that size, with the networks loaded."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get(url or self.url)
        self.wait(lambda: self.status == "Ready for a photo." or self.problem)
        assert not self.problem

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], object], seconds: float = 60) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, seconds, 0.02).until(lambda _: condition())

    @property
    def status(self) -> str:
        return str(self.find("#status").text)

    @property
    def problem(self) -> str:
        return str(self.find("#problem").text)

    def allow_camera(self, setting: str) -> None:
        """`granted` or `denied`, as somebody would answer the browser's question."""
        answer = {"permission": {"name": "camera"}, "setting": setting}
        self.driver.execute_cdp_cmd("Browser.setPermission", answer)

    def choose(self, file: Path) -> None:
        """Gives the page a file and waits for what it says."""
        self.find("#file").send_keys(str(file))
        self.wait_for_answer()

    def drop(self, name: str, content: str, kind: str) -> None:
        """As with the mouse, of a file with that text."""
        self.run(
            """const carried = new DataTransfer();
            carried.items.add(new File([arguments[1]], arguments[0], {type: arguments[2]}));
            for (const kind of ["dragover", "drop"]) {
              const options = {dataTransfer: carried, bubbles: true, cancelable: true};
              const event = new DragEvent(kind, options);
              document.body.dispatchEvent(event);
              if (!event.defaultPrevented) throw Error("the browser would leave the page");
            }""",
            name,
            content,
            kind,
        )
        self.wait_for_answer()

    def wait_for_answer(self) -> None:
        self.wait(lambda: self.status.startswith("Answer") or self.problem)

    @property
    def answer(self) -> tuple[int, dict[str, list[float]]]:
        """The label, and the probabilities of each attribute."""
        label, shares = self.run(
            """const answers = document.querySelector("#answers");
            const rows = (part) => [...part.querySelectorAll("li")];
            const shares = [...answers.querySelectorAll(".answer")].map(
              (part) => rows(part).map((row) => Number(row.dataset.probability)));
            return [Number(answers.dataset.label), shares];"""
        )
        return label, dict(zip(ATTRIBUTES, shares, strict=True))


@contextmanager
def browse(url: str, profile: Path, *flags: str) -> Iterator[Page]:
    """Chromium without a window, and without any network but this machine."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = find_program("chromium", "chromium-browser", "google-chrome")
    for flag in (*FLAGS, f"--user-data-dir={profile}", *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(find_program("chromedriver")))
    try:
        page = Page(driver, url)
        page.allow_camera("granted")
        yield page
    finally:
        driver.quit()


@pytest.fixture(scope="session")
def browser(server: PageServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browse(server.url, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page) -> Page:
    """Opened anew."""
    browser.open()
    return browser


@pytest.fixture
def serving() -> Callable[..., AbstractContextManager[PageServer]]:
    """`with serving(site) as server`."""
    return serve


@pytest.fixture
def browsing() -> Callable[..., AbstractContextManager[Page]]:
    """`with browsing(url, profile_folder, *flags) as page`: a browser of its own."""
    return browse
