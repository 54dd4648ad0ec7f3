"""The server: the files of the page by their names, for this machine, and nothing else."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator

import pytest

from maskcls.errors import PageError
from maskcls.web.server import HOST, PageServer

SITE = {
    "index.html": b"<!DOCTYPE html><title>page</title>",
    "page.js": b"start();",
    "onnxruntime-web/ort.wasm": b"\0asm",
}


@pytest.fixture
def server() -> Iterator[PageServer]:
    with PageServer(SITE, 0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


def ask(
    server: PageServer, path: str, method: str = "GET", host: str = ""
) -> tuple[int, bytes, dict[str, str]]:
    """Status, content and headers. The path goes out as it stands, without tidying."""
    connection = http.client.HTTPConnection(HOST, server.port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host or f"{HOST}:{server.port}")
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def test_files_by_their_names(server: PageServer) -> None:
    for path, name, kind in (
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/?anything", "index.html", "text/html; charset=utf-8"),
        ("/page.js", "page.js", "text/javascript; charset=utf-8"),
        ("/onnxruntime-web/ort.wasm", "onnxruntime-web/ort.wasm", "application/wasm"),
    ):
        status, content, headers = ask(server, path)
        assert (status, content) == (200, SITE[name])
        assert headers["Content-Type"] == kind
        assert "connect-src 'self'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Python" not in headers["Server"]
    status, content, headers = ask(server, "/", "HEAD")
    assert (status, content) == (200, b"")
    assert headers["Content-Length"] == str(len(SITE["index.html"]))


@pytest.mark.parametrize(
    "path",
    [
        *("/../pyproject.toml", "/../../../../etc/passwd", "//etc/passwd", "/./index.html"),
        *("/%2e%2e/pyproject.toml", "/..%2fpyproject.toml", "/..\\pyproject.toml", "/page.js/"),
        *("/onnxruntime-web/", "/onnxruntime-web/../page.js", "/page.js%00.html", "/server.py"),
        *("file:///etc/passwd", "http://[/", "//[", "*", "/page.js#fragment"),
    ],
)
def test_no_path_leads_elsewhere(
    server: PageServer, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, content, _ = ask(server, path)
    assert (status, content) == (404, b"no such file\n")
    assert capsys.readouterr().err == ""  # nor to a traceback


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT"])
def test_nothing_is_taken(server: PageServer, method: str) -> None:
    assert ask(server, "/", method)[0] == 501


@pytest.mark.parametrize("host", ["photos.example", "127.0.0.1", "127.0.0.1:1", "0.0.0.0:{port}"])
def test_a_name_that_leads_here_from_elsewhere(server: PageServer, host: str) -> None:
    """DNS rebinding: somebody's page would read ours under a name of theirs."""
    status, content, _ = ask(server, "/", host=host.format(port=server.port))
    assert status == 421
    assert SITE["index.html"] not in content
    assert ask(server, "/", host=f"localhost:{server.port}")[0] == 200


def own_addresses() -> set[str]:
    """Of this machine in its networks; no packet is sent to find out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return set()
        return {probe.getsockname()[0]}


def test_other_machines_do_not_reach_it(server: PageServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    addresses = {address for address in own_addresses() if not address.startswith("127.")}
    if not addresses:
        pytest.skip("this machine is in no network")
    for address in addresses:
        with pytest.raises(OSError):
            socket.create_connection((address, server.port), timeout=5).close()


def test_a_port_that_is_taken(server: PageServer) -> None:
    with pytest.raises(PageError, match=rf"--port {server.port}: .*; name another, or 0"):
        PageServer(SITE, server.port)


def test_a_browser_that_goes_away(server: PageServer, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection((HOST, server.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHo")
    assert ask(server, "/")[0] == 200
    assert capsys.readouterr().err == ""
