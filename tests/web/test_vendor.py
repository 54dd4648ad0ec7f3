"""onnxruntime-web is fetched once, at the pinned version, or it is said why not and what to do."""

from __future__ import annotations

import io
import shutil
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from maskcls.errors import PageError
from maskcls.web import vendor
from maskcls.web.vendor import ARCHIVE, SCRIPTS, fetch, is_fetched, read_vendored, vendor_folder


def package(path: Path) -> Path:
    """A package file of that name with other content."""
    with tarfile.open(path, "w:gz") as archive:
        for name in SCRIPTS:
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = 3
            archive.addfile(member, io.BytesIO(b"bad"))
    return path


@pytest.fixture
def npm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """npm with an empty cache, and a registry that nobody answers for."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm; there is none here")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")


def test_not_fetched_yet(tmp_path: Path) -> None:
    with pytest.raises(PageError, match="fetch it once with maskcls-demo --fetch"):
        read_vendored(tmp_path)


def test_another_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PageError, match="other.tgz: not onnxruntime-web .* its sha512 is "):
        fetch(tmp_path / "cache", package(tmp_path / "other.tgz"))
    assert not (tmp_path / "cache").exists()


def test_no_archive(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fetch(tmp_path / "cache", tmp_path / ARCHIVE)


def test_without_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PageError, match="no npm here .*; install Node.js, or run `npm pack "):
        fetch(tmp_path / "cache")


@pytest.mark.usefixtures("npm")
def test_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(PageError) as caught:
        fetch(tmp_path / "cache")
    assert "ECONNREFUSED" in str(caught.value)
    assert "Without a network, run `npm pack onnxruntime-web@" in str(caught.value)
    assert not is_fetched(tmp_path / "cache")


@pytest.mark.usefixtures("npm")
def test_a_registry_that_does_not_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as registry:
        thread = threading.Thread(target=registry.serve_forever)
        thread.start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{registry.server_port}/")
        try:
            with pytest.raises(PageError, match="npm cannot get onnxruntime-web"):
                fetch(tmp_path / "cache")
        finally:
            registry.shutdown()
            thread.join()


def test_an_incomplete_folder_counts_as_none(tmp_path: Path) -> None:
    folder = vendor_folder(tmp_path)
    folder.mkdir()
    for name in SCRIPTS:
        (folder / name).write_bytes(b"")
    assert not is_fetched(tmp_path)


@pytest.mark.slow
@pytest.mark.xdist_group("page")
def test_what_is_fetched(fetched: Path) -> None:
    content = read_vendored(fetched)
    assert set(content) == {*SCRIPTS, vendor.LICENCE}
    assert content["ort-wasm-simd-threaded.wasm"].startswith(b"\0asm")
    assert vendor.VERSION.encode() in content["ort.wasm.min.mjs"]
    assert b"MIT License" in content[vendor.LICENCE]
