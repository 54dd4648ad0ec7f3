"""The example of a service with FastAPI: the app as its users run it, asked over HTTP."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from maskcls.errors import PictureError
from maskcls.images import read_image
from maskcls.labels import ATTRIBUTES, MULTI
from maskcls.manifest import ONNX_KEY, OnnxManifest
from maskcls.onnx.fuse import fuse
from maskcls.runtime import Classifier
from tests.runtime.test_session import network

for package in ("fastapi", "python_multipart", "httpx", "uvicorn"):
    pytest.importorskip(package)

import anyio.to_thread
import httpx

APP = Path(__file__).resolve().parents[2] / "examples" / "serving" / "fastapi_app.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small fused file, as in the folder of an export, and a picture."""
    folder = tmp_path_factory.mktemp("service")
    protos = [network("mask_gender"), network("age")]
    manifests = []
    for proto in protos:
        for number, node in enumerate(proto.graph.node):
            node.name = str(number)
        [text] = [entry.value for entry in proto.metadata_props if entry.key == ONNX_KEY]
        manifests.append(OnnxManifest.from_json(text).networks[0])
    fused = fuse(list(zip(protos, manifests, strict=True)))
    described = OnnxManifest("fused", tuple(manifests), ("0" * 64,) * 2, "fp32", 20)
    onnx.helper.set_model_props(fused, {ONNX_KEY: described.to_json()})
    onnx.save(fused, folder / "maskcls.onnx")
    pixels = np.random.default_rng(2).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "사진.jpg")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The address of the app in a uvicorn process."""
    log = folder / "uvicorn.log"
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(APP.parent), "--port", "0"]
    environment = os.environ | {
        "PYTHONPATH": str(APP.parents[2]),
        "MASKCLS_MODEL": str(folder),
        "MASKCLS_PROVIDER": "cpu",
        "MASKCLS_MAX_BYTES": "200000",
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "fastapi_app:app"], env=environment, stdout=file, stderr=file
        )
    try:
        for _ in range(300):
            said = log.read_text()
            if "running on " in said:
                break
            assert process.poll() is None, said
            time.sleep(0.1)
        yield said.partition("running on ")[2].split()[0]
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as client:
        yield client


def check(answer: Any, expected_of: Path, folder: Path) -> None:
    with Classifier(folder / "maskcls.onnx", provider="cpu") as classifier:
        expected = classifier.predict(expected_of)
    assert "error" not in answer
    assert answer["label"] == expected.label
    assert answer["name"] == MULTI.class_names[answer["label"]]
    assert answer["name"] == ", ".join(answer[name] for name in ATTRIBUTES)
    assert set(answer["probabilities"]) == {*ATTRIBUTES, "label"}
    for name, shares in answer["probabilities"].items():
        assert shares == pytest.approx(dict(expected.probabilities[name]))


def test_a_photo_is_answered(client: httpx.Client, folder: Path) -> None:
    path = folder / "사진.jpg"
    done = client.post("/predict", files={"picture": (path.name, path.read_bytes())})
    assert done.status_code == 200
    check(done.json(), path, folder)
    assert client.get("/health").json() == {"status": "ok", "provider": "CPUExecutionProvider"}
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/health"}


def test_a_bad_picture_is_422_with_the_reason(client: httpx.Client, folder: Path) -> None:
    content = (folder / "사진.jpg").read_bytes()
    for bad, reason in (
        (b"no picture", "the picture: not a picture in a known format (JPEG, PNG, BMP, WEBP, PPM)"),
        (b"", "the picture: not a picture in a known format"),
        (content[: len(content) // 2], "the picture: cannot be decoded: "),
    ):
        done = client.post("/predict", files={"picture": ("a.jpg", bad)})
        assert done.status_code == 422
        assert done.json()["detail"].startswith(reason)
    bomb = io.BytesIO()
    Image.new("1", (8000, 8000)).save(bomb, "PNG")
    done = client.post("/predict", files={"picture": ("bomb.png", bomb.getvalue())})
    assert done.status_code == 422
    assert "8000x8000 pixels are more than" in done.json()["detail"]
    assert client.post("/predict", files={"photo": ("a.jpg", content)}).status_code == 422
    assert client.get("/predict").status_code == 405


def test_a_large_request_is_refused(client: httpx.Client) -> None:
    assert client.post("/predict", files={"picture": ("a", bytes(190_000))}).status_code == 422
    assert client.post("/predict", files={"picture": ("a", bytes(200_001))}).status_code == 413


def test_many_are_answered_at_once(client: httpx.Client, folder: Path) -> None:
    path = folder / "사진.jpg"

    def ask(number: int) -> Any:
        image = read_image(path).rotate(90 * (number % 4), expand=True)
        content = io.BytesIO()
        image.save(content, "PNG")
        done = client.post("/predict", files={"picture": content.getvalue()})
        return done.json()["probabilities"] if number % 5 else client.get("/health").text

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(40)))
    for number, answer in enumerate(answers):
        expected = {"status": "ok", "provider": "CPUExecutionProvider"}
        if number % 5:
            assert answer == answers[(number + 20) % 40]  # the same picture
        else:
            assert json.loads(answer) == expected


def test_a_request_without_a_length_is_limited_too(client: httpx.Client, folder: Path) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="picture"; filename="a"\r\n\r\n'
        for _ in range(500):
            yield bytes(10_000)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    try:
        refused = client.post("/predict", content=endless(), headers=headers)
        assert refused.status_code == 413
    except (httpx.WriteError, httpx.ReadError):
        pass  # the server has closed the connection before everything was sent
    path = folder / "사진.jpg"
    done = client.post("/predict", files={"picture": path.read_bytes()})
    check(done.json(), path, folder)


def test_health_is_answered_while_all_threads_are_busy() -> None:
    spec = importlib.util.spec_from_file_location("fastapi_app", APP)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    begun, free = threading.Event(), threading.Event()

    class Busy:
        provider = "CPUExecutionProvider"

        def predict(self, content: bytes) -> Any:
            begun.set()
            free.wait(60)
            raise PictureError("the picture: was none")

    async def ask() -> None:
        module.app.state.classifier = Busy()
        anyio.to_thread.current_default_thread_limiter().total_tokens = 1
        transport = httpx.ASGITransport(module.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            files = {"picture": ("a.jpg", b"x")}
            asked = [asyncio.create_task(client.post("/predict", files=files)) for _ in range(3)]
            try:
                while not begun.is_set():
                    await asyncio.sleep(0.01)
                health = await asyncio.wait_for(client.get("/health"), 30)
            finally:
                free.set()
            assert health.status_code == 200
            assert {one.status_code for one in await asyncio.gather(*asked)} == {422}

    asyncio.run(ask())
