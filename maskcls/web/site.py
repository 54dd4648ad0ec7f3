"""The page as files by name: ours, onnxruntime-web, the model and what the model says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from maskcls.errors import CheckpointError
from maskcls.files import write_atomic
from maskcls.images import FORMATS, MAX_PIXELS
from maskcls.labels import ATTRIBUTES
from maskcls.manifest import Manifest, OnnxManifest, networks_within
from maskcls.runtime.session import OnnxFile, read_onnx
from maskcls.web.vendor import read_vendored

INDEX = "index.html"
OWN_FILES = (INDEX, "page.css", "page.js", "worker.js", "pixels.js", "icon.svg")
MODEL, DESCRIPTION = "maskcls.onnx", "model.json"
NOT_IN_BROWSERS = ("PPM",)
"""Formats that Python reads and no browser decodes."""
VENDORED = "onnxruntime-web"
"""The folder of the files that are not ours."""

POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
    "connect-src 'self'; img-src 'self' blob:; media-src 'self' blob:; style-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)
"""Content-Security-Policy: whatever runs on the page, it reaches its own server and no other. In
the page itself, so that it holds wherever the files lie, and in the headers of our server."""


def build_site(model: Path, cache: Path) -> dict[str, bytes]:
    """Every file of the page, by its name under the page's address.

    `model`: the fused file of an export, or the export's folder. `cache`: where onnxruntime-web
    was fetched to.

    Raises:
        CheckpointError: no fused file of this project, or one that takes pictures of one size only.
        PageError: onnxruntime-web was not fetched.
        MissingExtraError: without the package onnx.
    """
    file = read_onnx(model / MODEL if model.is_dir() else model)
    if file.manifest.kind != "fused":
        raise CheckpointError(
            f"{file.path}: the network {file.manifest.networks[0].task} alone, without what goes "
            f"before and after it; give the fused file, {MODEL}, which maskcls-export writes where "
            "the networks answer everything"
        )
    if file.manifest.input_size is not None:
        height, width = file.manifest.input_size
        raise CheckpointError(
            f"{file.path}: takes pictures of {height}x{width} only, and a browser does not resize "
            "as the networks were trained; export without --input-size"
        )
    static = files("maskcls.web") / "static"
    site = {name: (static / name).read_bytes() for name in OWN_FILES}
    site[INDEX] = site[INDEX].replace(b"{{policy}}", escape(POLICY).encode())
    site |= {f"{VENDORED}/{name}": content for name, content in read_vendored(cache).items()}
    site[MODEL] = file.content
    site[DESCRIPTION] = json.dumps(describe(file), ensure_ascii=False, indent=1).encode()
    return site


def describe(file: OnnxFile) -> dict[str, Any]:
    """What the page has to know, and what it shows, of a model."""
    return {
        "file": MODEL,
        "bytes": len(file.content),
        "attributes": ATTRIBUTES,
        "formats": [name for name in FORMATS if name not in NOT_IN_BROWSERS],
        "max_pixels": MAX_PIXELS,
        "facts": list(facts(file.manifest, file.sha256).items()),
        "manifest": json.loads(file.manifest.to_json()),
    }


def facts(manifest: OnnxManifest, sha256: str) -> dict[str, str]:
    """The lines about a model that people read first."""
    found = {_title(network): _about(network) for network in manifest.networks}
    found["Precision"] = manifest.precision
    if parity := manifest.parity:
        found["Compared with PyTorch"] = (
            f"{parity['label_flips']} of {parity['pictures']} labels differed"
        )
    if versions := manifest.versions:
        found["Made with"] = ", ".join(f"{name} {number}" for name, number in versions.items())
    found["sha256"] = sha256
    return found


def _title(network: Manifest) -> str:
    return " and ".join(network.get_task().attributes).capitalize()


def _about(network: Manifest) -> str:
    spec = network.preprocess
    members = networks_within(network)
    models = ", ".join(dict.fromkeys(member.model for member in members))
    parts = [models if len(members) == 1 else f"the mean of {len(members)} networks, {models}"]
    parts.append(f"{spec.height} × {spec.width} pixels (height × width)")
    if spec.crop != (1.0, 1.0):
        parts.append("of the middle {:.0%} × {:.0%}".format(*spec.crop))
    if all(member.tta == "flip" for member in members):
        parts.append("averaged over the picture and its mirror image")
    if all(member.calibration is not None for member in members):
        parts.append("calibrated")
    if "macro_f1" in network.metrics:
        parts.append(f"macro F1 {network.metrics['macro_f1']:.3f} on its validation people")
    return ", ".join(parts)


def write_site(site: Mapping[str, bytes], folder: Path) -> None:
    """The files under a folder, for any static file server; each whole or not at all, the page
    itself last.

    Raises:
        OSError: one cannot be written; it names the file.
    """
    for name in sorted(site, key=lambda name: name == INDEX):
        write_atomic(folder / name, site[name])
