"""ImageNet weights by download, from a real server on this machine, and starts from files."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from maskcls import weights
from maskcls.checkpoints import read_checkpoint, save_checkpoint
from maskcls.errors import CheckpointError, ConfigError, WeightsError
from maskcls.labels import TASKS
from maskcls.manifest import Manifest
from maskcls.models import MODELS, create_model
from maskcls.preprocessing import PreprocessSpec
from maskcls.weights import apply_start, fetch_imagenet, find_start, imagenet_url, model_of

SIZE = (32, 32)


class Server:
    """Serves what stands in `files`; counts the requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                content = server.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An own torch.hub folder; nothing goes through a proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture(scope="module")
def imagenet() -> bytes:
    """What a ResNet18 of 1,000 classes looks like on the disk."""
    torch.manual_seed(0)
    buffer = io.BytesIO()
    torch.save(create_model("resnet18", 1000, SIZE).state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture
def offered(server: Server, imagenet: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name under which the server has the weights."""
    name = f"resnet18-{hashlib.sha256(imagenet).hexdigest()[:8]}.pth"
    server.files[f"/{name}"] = imagenet
    monkeypatch.setattr(weights, "imagenet_url", lambda model: f"{server.url}/{name}")
    return name


def point_to(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(weights, "imagenet_url", lambda model: url)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


# --- download ----------------------------------------------------------------------------------


def test_download_once_and_train_from_it(
    hub: Path, server: Server, offered: str, imagenet: bytes
) -> None:
    file = fetch_imagenet("resnet18")
    assert file == hub / offered
    assert file.read_bytes() == imagenet
    assert left_in(hub) == [offered]

    model = create_model("resnet18", 3, SIZE)
    assert apply_start(model, file, "age") == ["fc.bias", "fc.weight"]
    source = torch.load(io.BytesIO(imagenet), weights_only=True)
    assert torch.equal(model.conv1.weight, source["conv1.weight"])

    assert fetch_imagenet("resnet18") == file
    assert len(server.requests) == 1


def test_wrong_content_is_refused_and_not_kept(hub: Path, server: Server, offered: str) -> None:
    server.files[f"/{offered}"] = b"somebody else's file"
    with pytest.raises(WeightsError, match="invalid hash value"):
        fetch_imagenet("resnet18")
    assert left_in(hub) == []


def assert_has_way_out(caught: pytest.ExceptionInfo[WeightsError], hub: Path, url: str) -> None:
    message = str(caught.value)
    assert url in message
    assert f"put the file into {hub} yourself" in message
    assert "--weights none" in message


def test_404(hub: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{server.url}/gone-12345678.pth"
    point_to(monkeypatch, url)
    with pytest.raises(WeightsError, match="Not Found") as caught:
        fetch_imagenet("resnet18")
    assert_has_way_out(caught, hub, url)
    assert left_in(hub) == []


def test_refused_connection(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/a-12345678.pth"
    point_to(monkeypatch, url)
    with pytest.raises(WeightsError, match="refused") as caught:
        fetch_imagenet("resnet18")
    assert_has_way_out(caught, hub, url)


def test_a_name_that_nobody_knows(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://weights.invalid/a-12345678.pth"
    point_to(monkeypatch, url)
    with pytest.raises(WeightsError) as caught:
        fetch_imagenet("resnet18")
    assert_has_way_out(caught, hub, url)


def test_a_server_that_never_answers(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "TIMEOUT", 0.3)
    before = socket.getdefaulttimeout()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a-12345678.pth"
        point_to(monkeypatch, url)
        with pytest.raises(WeightsError, match="timed out") as caught:
            fetch_imagenet("resnet18")
    assert_has_way_out(caught, hub, url)
    assert socket.getdefaulttimeout() == before


@pytest.fixture
def collected() -> Iterator[None]:
    """What a test leaves to the garbage collector warns in that test, not in a later one."""
    yield
    gc.collect()


# urllib leaves the socket of such an answer to the garbage collector.
@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "answer",
    [
        b"this is not HTTP\r\n\r\n",
        b"",  # hangs up
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nshort",
    ],
)
def test_a_server_that_answers_nonsense(
    hub: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as odd:
        url = f"http://127.0.0.1:{odd.getsockname()[1]}/a-12345678.pth"
        point_to(monkeypatch, url)

        def serve() -> None:
            connection, _ = odd.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(WeightsError) as caught:
            fetch_imagenet("resnet18")
        thread.join()
    assert_has_way_out(caught, hub, url)
    assert left_in(hub) == []


def test_a_folder_that_cannot_be_made(hub: Path, offered: str) -> None:
    hub.parent.write_text("a file where the folder should be")
    with pytest.raises(WeightsError):
        fetch_imagenet("resnet18")


@pytest.mark.parametrize("name", MODELS)
def test_urls_carry_the_digest_that_a_download_is_checked_with(name: str) -> None:
    url = imagenet_url(name)
    if name == "base":
        assert url is None
        with pytest.raises(WeightsError, match="no ImageNet weights for 'base'"):
            fetch_imagenet(name)
    else:
        assert url is not None and re.fullmatch(r"https://.*/[\w-]+-[0-9a-f]{8}\.pth", url)


# --- where a network starts --------------------------------------------------------------------


def test_auto_and_imagenet_take_the_download(hub: Path, offered: str) -> None:
    said: list[str] = []
    for option in ("auto", "imagenet"):
        assert find_start(option, "resnet18", said.append) == hub / offered
    assert said == []


def test_auto_falls_back_saying_one_line_and_imagenet_insists(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_to(monkeypatch, f"{server.url}/gone-12345678.pth")
    said: list[str] = []
    assert find_start("auto", "resnet18", said.append) is None
    [line] = said
    assert line.startswith("training from scratch: ")
    assert "\n" not in line
    with pytest.raises(WeightsError):
        find_start("imagenet", "resnet18", said.append)
    assert len(said) == 1


def test_none_asks_nobody(server: Server, offered: str) -> None:
    assert find_start("none", "resnet18", print) is None
    assert server.requests == []


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'imagenet'"):
        find_start("imagenett", "resnet18", print)
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        find_start(str(tmp_path), "resnet18", print)


def checkpoint(path: Path, task: str = "age", **more: object) -> dict[str, torch.Tensor]:
    """Writes one of our checkpoints of a ResNet18; returns its weights."""
    manifest = Manifest(task, TASKS[task].class_names, PreprocessSpec(*SIZE), "resnet18", {})
    state = create_model("resnet18", TASKS[task].num_classes, SIZE).state_dict()
    save_checkpoint({"manifest": manifest.to_json(), "model": state, **more}, path)
    return state


def test_start_from_a_plain_state_dict(tmp_path: Path, imagenet: bytes) -> None:
    file = tmp_path / "plain.pth"
    file.write_bytes(imagenet)
    assert find_start(str(file), "resnet18", print) == file
    assert model_of(file) is None
    model = create_model("resnet18", 1000, SIZE)
    assert apply_start(model, file, "age") == []
    assert apply_start(model, file, "age", keep_classifier=False) == ["fc.bias", "fc.weight"]


def test_a_damaged_start_gives_way_to_the_save_before_it(tmp_path: Path) -> None:
    file = tmp_path / "best.pt"
    checkpoint(file)
    save_checkpoint(read_checkpoint(file), file)
    os.truncate(file, 1000)
    with pytest.warns(UserWarning, match=r"best\.pt: damaged .*taking .*best\.prev\.pt"):
        assert model_of(file) == "resnet18"


def test_start_from_one_of_our_checkpoints(tmp_path: Path) -> None:
    file = tmp_path / "best.pt"
    state = checkpoint(file)
    assert model_of(file) == "resnet18"
    model = create_model("resnet18", 3, SIZE)
    assert apply_start(model, file, "age") == []
    assert torch.equal(model.fc.weight, state["fc.weight"])
    other = create_model("resnet18", 6, SIZE)
    assert apply_start(other, file, "age") == ["fc.bias", "fc.weight"]
    assert torch.equal(other.conv1.weight, state["conv1.weight"])


def test_a_classifier_of_another_task_is_not_taken_for_its_size(tmp_path: Path) -> None:
    file = tmp_path / "best.pt"
    state = checkpoint(file)
    model = create_model("resnet18", 3, SIZE)
    assert apply_start(model, file, "mask") == ["fc.bias", "fc.weight"]
    assert torch.equal(model.conv1.weight, state["conv1.weight"])


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    file = tmp_path / "best.pt"
    average = create_model("resnet18", 3, SIZE).state_dict()
    checkpoint(file, ema=average)
    model = create_model("resnet18", 3, SIZE)
    apply_start(model, file, "age")
    assert torch.equal(model.fc.weight, average["fc.weight"])


def test_weights_of_another_network(tmp_path: Path) -> None:
    file = tmp_path / "best.pt"
    checkpoint(file)
    with pytest.raises(WeightsError, match=rf"{re.escape(str(file))}.*BaseModel"):
        apply_start(create_model("base", 3, SIZE), file, "age")


@pytest.mark.parametrize(
    "content",
    [
        torch.ones(3),
        [1, 2],
        {},
        {"state_dict": {"a": torch.ones(1)}},
        {0: torch.ones(1)},
        {"manifest": "{}"},
        {"manifest": "{}", "model": 3},
        {"manifest": "{}", "model": {0: torch.ones(1)}},
    ],
)
def test_files_without_weights(tmp_path: Path, content: object) -> None:
    file = tmp_path / "odd.pt"
    torch.save(content, file)
    with pytest.raises(WeightsError, match=re.escape(str(file))):
        apply_start(create_model("resnet18", 3, SIZE), file, "age")


def test_a_file_that_torch_cannot_read(tmp_path: Path) -> None:
    file = tmp_path / "picture.jpg"
    file.write_bytes(b"\xff\xd8\xff\xe0")
    for use in (model_of, lambda path: apply_start(create_model("base", 3, SIZE), path, "age")):
        with pytest.raises((CheckpointError, WeightsError), match=re.escape(str(file))):
            use(file)
