"""onnxruntime-web is fetched once, at the pinned version, or it is said why not and what to do."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from maskcls.errors import PageError
from maskcls.web import vendor
from maskcls.web.vendor import (
    ARCHIVE,
    LICENCE,
    PACKAGE,
    SCRIPTS,
    VERSION,
    fetch,
    is_fetched,
    read_vendored,
    vendor_folder,
)


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


@contextmanager
def registry(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> Iterator[str]:
    """npm's registry from here on: those files by their paths. Gives its address."""

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if (content := files.get(self.path)) is None:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("npm_config_registry", f"{address}/")
        try:
            yield address
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.usefixtures("npm")
def test_a_registry_that_does_not_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        registry(monkeypatch, {}),
        pytest.raises(PageError, match="npm cannot get onnxruntime-web"),
    ):
        fetch(tmp_path / "cache")


@pytest.mark.usefixtures("npm")
def test_npm_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small package of that name and version; its digest takes the place of the real one's."""
    content = package(tmp_path / ARCHIVE).read_bytes()
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    files = {"/package.tgz": content}
    with registry(monkeypatch, files) as address:
        about = {"name": PACKAGE, "version": VERSION}
        about["dist"] = {"tarball": f"{address}/package.tgz", "integrity": f"sha512-{digest}"}
        files[f"/{PACKAGE}"] = json.dumps({"name": PACKAGE, "versions": {VERSION: about}}).encode()
        with pytest.raises(PageError, match=f"what npm got as {ARCHIVE}: not onnxruntime-web"):
            fetch(tmp_path / "cache")
        monkeypatch.setattr(vendor, "SHA512", digest)
        assert fetch(tmp_path / "cache") == vendor_folder(tmp_path / "cache")
    found = read_vendored(tmp_path / "cache")
    assert {name: found[name] for name in SCRIPTS} == dict.fromkeys(SCRIPTS, b"bad")
    assert found[LICENCE].startswith(b"MIT License")


def test_the_guide_names_this_version() -> None:
    guide = Path(__file__).resolve().parents[2] / "docs" / "guides" / "browser.md"
    named = re.findall(r"onnxruntime-web-[\d.]+\.tgz", guide.read_text("utf-8"))
    assert set(named) == {ARCHIVE}


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
