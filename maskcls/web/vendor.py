"""onnxruntime-web, the part of the page that is not ours: fetched once, at one pinned version.

The page loads it from beside itself, never from another server. It is not in the repository: 14 MB
of compiled code belong to its own project. `fetch` takes the package that npm gets, compares it
with the digest below, and keeps the few files that the page needs.
"""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from importlib.resources import files
from pathlib import Path

from maskcls.errors import PageError
from maskcls.files import write_atomic

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package file, base64: the registry's `integrity`."""
ARCHIVE = f"{PACKAGE}-{VERSION}.tgz"
SCRIPTS = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""Of its folder dist: the interface, the loader, and the operators for the CPU."""
LICENCE = "LICENSE.txt"
"""The package has its licence in no file of its own; ours goes wherever the scripts go."""
TIMEOUT = 600  # seconds, of npm
PATIENCE = ("--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000")
"""Of npm, milliseconds. By itself it says for minutes nothing about a network that is not there."""


def vendor_folder(cache: Path) -> Path:
    """Where this version's files lie in a cache folder."""
    return cache / f"{PACKAGE}-{VERSION}"


def is_fetched(cache: Path) -> bool:
    """Whether every file is there."""
    return all((vendor_folder(cache) / name).is_file() for name in (*SCRIPTS, LICENCE))


def read_vendored(cache: Path) -> dict[str, bytes]:
    """File name → content.

    Raises:
        PageError: not fetched yet; says how.
    """
    folder = vendor_folder(cache)
    if not is_fetched(cache):
        raise PageError(
            f"{folder}: no {PACKAGE} {VERSION} there, which the page computes with; "
            "fetch it once with maskcls-demo --fetch (needs npm and a network), or with "
            f"maskcls-demo --fetch {ARCHIVE}, which `npm pack {PACKAGE}@{VERSION}` makes elsewhere"
        )
    return {name: (folder / name).read_bytes() for name in (*SCRIPTS, LICENCE)}


def fetch(cache: Path, archive: Path | None = None) -> Path:
    """Unpacks what the page needs into the cache folder, from the package file `archive` or, where
    it is None, from the one that npm gets. Returns the folder.

    Raises:
        PageError: no npm, no network, or not the package that was pinned.
        OSError: the folder cannot be written, or the archive not be read.
    """
    content = _pack() if archive is None else archive.read_bytes()
    source = archive or f"what npm got as {ARCHIVE}"
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if digest != SHA512:
        raise PageError(
            f"{source}: not {PACKAGE} {VERSION}, or damaged: its sha512 is {digest}, not {SHA512}"
        )
    folder = vendor_folder(cache)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as package:
        for name in SCRIPTS:
            member = package.extractfile(f"package/dist/{name}")
            assert member is not None  # the digest says what is in it
            with member:
                write_atomic(folder / name, member.read())
    licence = files("maskcls.web") / "static" / "onnxruntime-web-LICENSE.txt"
    write_atomic(folder / LICENCE, licence.read_bytes())
    return folder


def _pack() -> bytes:
    npm = shutil.which("npm")
    if npm is None:
        raise PageError(
            f"no npm here to get {PACKAGE} with; install Node.js, or run `npm pack "
            f"{PACKAGE}@{VERSION}` on another machine and give its file: "
            f"maskcls-demo --fetch {ARCHIVE}"
        )
    command = [
        npm,
        "pack",
        f"{PACKAGE}@{VERSION}",
        "--ignore-scripts",
        "--loglevel=error",
        *PATIENCE,
    ]
    # An empty folder: no project's .npmrc has a say.
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired:
            raise PageError(f"npm did not get {PACKAGE} in {TIMEOUT} seconds; try again") from None
        file = Path(folder, ARCHIVE)
        if done.returncode or not file.is_file():
            raise PageError(
                f"npm cannot get {PACKAGE} {VERSION}: {_reason(done)}. Without a network, run "
                f"`npm pack {PACKAGE}@{VERSION}` on another machine and give its file: "
                f"maskcls-demo --fetch {ARCHIVE}"
            )
        return file.read_bytes()


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = (line.removeprefix("npm error ") for line in done.stderr.splitlines())
    said = " ".join(line.strip() for line in lines if not line.startswith("A complete log"))
    return said[:300] or f"exit code {done.returncode}"
