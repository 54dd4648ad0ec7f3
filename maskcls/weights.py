"""Where a network starts: ImageNet weights by download, a file, or random.

Downloads are checked against the digest in their file name and kept where `torch.hub` keeps them.
On a machine without a network, put the file there by hand; the error message says where.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import torch
from efficientnet_pytorch.utils import url_map
from torch import nn
from torchvision.models import get_model_weights

from maskcls.checkpoints import digest_path, load_plain, open_checkpoint
from maskcls.config import WEIGHT_NAMES
from maskcls.errors import ConfigError, WeightsError, unknown
from maskcls.files import locked
from maskcls.manifest import Manifest
from maskcls.models import load_weights
from maskcls.provenance import OTHERS

TIMEOUT = 15  # seconds without a byte from the server


def imagenet_url(model: str) -> str | None:
    """Where the ImageNet weights of a network lie; None for a network that has none."""
    if model.startswith("efficientnet"):
        return str(url_map["efficientnet-b" + model[len("efficientnet_b")]])
    if model in _TORCHVISION:
        return str(get_model_weights(_TORCHVISION[model])["IMAGENET1K_V1"].url)
    return None


_TORCHVISION = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnext50": "resnext50_32x4d",
    "resnext101": "resnext101_32x8d",
    "vgg19": "vgg19",
}


def fetch_imagenet(model: str) -> Path:
    """The file of ImageNet weights, downloaded unless it is there already.

    Raises:
        WeightsError: the network has none, or they cannot be downloaded; says the way out.
    """
    url = imagenet_url(model)
    if url is None:
        raise WeightsError(
            f"there are no ImageNet weights for {model!r}; train with --weights none"
        )
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / url.rpartition("/")[2]
    if file.is_file():
        return file
    digest = file.stem.rpartition("-")[2]
    before = socket.getdefaulttimeout()
    try:
        # Of two processes one downloads, and the other finds the file.
        with locked(folder / f"{file.name}.lock", lambda: None):
            if not file.is_file():
                socket.setdefaulttimeout(TIMEOUT)  # torch.hub sets none and would wait for ever
                torch.hub.download_url_to_file(url, str(file), digest)
    except (URLError, HTTPException, OSError, RuntimeError) as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        raise WeightsError(
            f"ImageNet weights of {model} cannot be downloaded from {url} "
            f"({getattr(error, 'reason', error)}); put the file into {folder} yourself, "
            "or train with --weights none"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    return file


def find_start(weights: str, model: str, say: Callable[[str], None]) -> Path | None:
    """The file that a network starts from, None for random weights.

    `weights`: `auto` (ImageNet where it can be had, else random, saying so), `imagenet` (insists),
    `none`, or a path.

    Raises:
        WeightsError: `imagenet` cannot be had.
        ConfigError: neither one of these words nor a file.
    """
    if weights == "none":
        return None
    if weights == "auto":
        try:
            return fetch_imagenet(model)
        except WeightsError as error:
            say(f"training from scratch: {error}")
            return None
    if weights == "imagenet":
        return fetch_imagenet(model)
    if not Path(weights).is_file():
        raise ConfigError(f"--weights: {unknown('start', weights, WEIGHT_NAMES)}, or a file")
    return Path(weights)


def model_of(file: Path) -> str | None:
    """The network of one of our checkpoints; None for a plain state dict.

    Raises:
        CheckpointError: not a file of tensors and plain values.
    """
    content = _content(file)
    if isinstance(content, dict) and "manifest" in content:
        return Manifest.from_json(content["manifest"]).model
    return None


def apply_start(
    model: nn.Module, file: Path, task: str, *, keep_classifier: bool = True
) -> list[str]:
    """Loads a plain state dict or one of our checkpoints, the classifier fitted to the task.

    The classifier starts anew where its shape does not fit, where one of our checkpoints was
    trained for another task (`mask` and `age` have three classes each), and in any case without
    `keep_classifier`.

    Returns:
        The tensors that keep their random weights.

    Raises:
        CheckpointError: a file that is damaged or holds more than tensors and plain values.
        WeightsError: no weights by name, or weights of another network.
    """
    content = _content(file)
    if not isinstance(content, dict):
        raise WeightsError(f"{file}: holds no weights by name")
    ours = "manifest" in content
    state = content.get("ema") or content.get("model") if ours else content
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise WeightsError(f"{file}: holds no weights by name")
    same_task = not ours or Manifest.from_json(content["manifest"]).task == task
    return load_weights(model, state, str(file), keep_classifier=keep_classifier and same_task)


def seen_by(file: Path) -> frozenset[int]:
    """Fingerprints of whom a file's network was trained on; `OTHERS` where it does not say.

    Raises:
        CheckpointError: as `apply_start`.
    """
    content = _content(file)
    seen = content.get("seen") if isinstance(content, dict) else None
    return frozenset(seen.tolist() if isinstance(seen, torch.Tensor) else [OTHERS])


def _content(file: Path) -> Any:
    # Ours has its digest beside it; a plain state dict has none.
    return open_checkpoint(file)[0] if digest_path(file).is_file() else load_plain(file)
