"""Serves the page to browsers on this machine, and to nobody else."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import PurePosixPath
from socketserver import ThreadingTCPServer
from typing import Any

from maskcls.errors import PageError
from maskcls.web.site import INDEX, POLICY

HOST = "127.0.0.1"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}
HEADERS = {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    # Together these two let WebAssembly use threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
"""Of every answer."""


class PageServer(ThreadingTCPServer):
    """Files from memory, by their exact names: no path of the disk can be asked for.

    (`http.server.HTTPServer` would ask the network for this machine's name.)

    `port` 0 takes any that is free. Listens from the start; `serve_forever` answers.

    Raises:
        PageError: the port is taken or not allowed.
    """

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere it would share a port that is taken

    def __init__(self, site: Mapping[str, bytes], port: int) -> None:
        self.site = site
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise PageError(
                f"--port {port}: {error.strerror or error}; name another, or 0 for any that is free"
            ) from None
        self.port: int = self.server_address[1]
        self.url = f"http://{HOST}:{self.port}/"
        # A name that leads here from elsewhere (DNS rebinding) is not one of these.
        self.names = {f"{name}:{self.port}" for name in (HOST, "localhost")}
        if self.port == 80:
            self.names |= {HOST, "localhost"}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle is nothing to report."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a connection may be silent

    def do_GET(self) -> None:
        if self.headers.get_all("Host") not in [[name] for name in self.server.names]:
            return self._answer(
                HTTPStatus.MISDIRECTED_REQUEST, "this page is at " + self.server.url
            )
        name = self.path.partition("?")[0].removeprefix("/") or INDEX
        content = self.server.site.get(name)
        if content is None:
            return self._answer(HTTPStatus.NOT_FOUND, "no such file")
        self._send(HTTPStatus.OK, TYPES[PurePosixPath(name).suffix], content)

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, text: str) -> None:
        self._send(status, TYPES[".txt"], f"{text}\n".encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def version_string(self) -> str:
        return "maskcls"

    def log_message(self, format: str, *args: Any) -> None:
        """Which files a browser asks for is no news."""
