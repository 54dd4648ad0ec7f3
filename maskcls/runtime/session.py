"""ONNX files of this project as onnxruntime sessions, on the provider that was asked for.

A file is read and checked before onnxruntime sees it: it must be whole, carry our manifest, and
hold its weights itself. A provider that was asked for and cannot be had is an error that says why;
onnxruntime itself would compute on the CPU without a word.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from maskcls.errors import CheckpointError, MissingExtraError, ProviderError
from maskcls.manifest import ONNX_KEY, SEEN_KEY, OnnxManifest

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
SETTINGS = {"cuda": {"use_tf32": "0"}}
"""Per provider. onnxruntime's own default rounds float32 to 10 bits on newer GPUs, and then a file
does not answer as it did when it was compared with PyTorch."""
IMAGES, LOGITS = "images", "logits"
"""Input of every file; output of a single network."""
FUSED_OUTPUTS = ("mask_prob", "gender_prob", "age_prob", "class_prob", "label")


@dataclass(frozen=True)
class OnnxFile:
    """A checked ONNX file. `proto` is the parsed `onnx.ModelProto`."""

    path: Path
    content: bytes
    manifest: OnnxManifest
    trained_on: frozenset[int] | None
    proto: Any

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def read_onnx(path: Path) -> OnnxFile:
    """An ONNX file that `maskcls-export` wrote.

    Raises:
        CheckpointError: no such file, truncated or no ONNX, weights in another file, without a
            manifest (someone else's model), or with inputs and outputs that are not ours.
        MissingExtraError: without the package onnx.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    return check_onnx(content, path)


def check_onnx(content: bytes, path: Path) -> OnnxFile:
    """As `read_onnx`, of a file's content."""
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
        from onnx.external_data_helper import (
            _get_all_tensors,
            uses_external_data,
        )
    except ImportError:
        raise MissingExtraError("onnx", "runtime", f"{path}: reading ONNX") from None
    try:
        proto = onnx.load_model_from_string(content)
    except (DecodeError, ValueError, RuntimeError):
        raise CheckpointError(f"{path}: damaged, truncated or no ONNX file") from None
    if not proto.graph.node:
        raise CheckpointError(f"{path}: damaged, truncated or no ONNX file (no network in it)")
    if any(uses_external_data(tensor) for tensor in _get_all_tensors(proto)):
        raise CheckpointError(
            f"{path}: refers to weights in other files; files of this project hold their own"
        )
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    if ONNX_KEY not in entries:
        raise CheckpointError(
            f"{path}: not a file of maskcls-export (it carries no manifest of maskcls)"
        )
    try:
        manifest = OnnxManifest.from_json(entries[ONNX_KEY])
        seen = _read_seen(entries.get(SEEN_KEY))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    outputs = [value.name for value in proto.graph.output]
    expected = [LOGITS] if manifest.kind == "network" else list(FUSED_OUTPUTS)
    if [value.name for value in proto.graph.input] != [IMAGES] or outputs != expected:
        raise CheckpointError(f"{path}: its inputs and outputs are not those of its manifest")
    return OnnxFile(path, content, manifest, seen, proto)


def write_seen(trained_on: frozenset[int] | None) -> str | None:
    """For `metadata_props`; None where a network does not say."""
    if trained_on is None:
        return None
    return base64.b64encode(np.array(sorted(trained_on), dtype="<i8").tobytes()).decode()


def _read_seen(text: str | None) -> frozenset[int] | None:
    if text is None:
        return None
    try:
        return frozenset(np.frombuffer(base64.b64decode(text, validate=True), "<i8").tolist())
    except ValueError as error:
        raise CheckpointError(f"its list of trained-on people is damaged: {error}") from None


def open_session(
    content: bytes,
    source: Path,
    provider: str = "auto",
    threads: int | None = None,
    settings: Mapping[str, str] | None = None,
) -> Any:
    """An `onnxruntime.InferenceSession` on exactly that provider.

    `provider`: `cpu`, `cuda`, `tensorrt`, or `auto`: CUDA where it works, else the CPU; where only
    opening shows that it does not, a warning says why. `threads`: of one operator on the CPU; None
    leaves them to onnxruntime. `settings`: options of the provider, beside ours.

    Raises:
        ProviderError: the provider cannot be had; says why and the way out.
        CheckpointError: onnxruntime cannot run the file.
        MissingExtraError: without onnxruntime.
    """
    if provider == "auto":
        if not why_not("cuda"):
            try:  # its memory may be full, or its driver too old
                return _open(content, source, "cuda", threads, settings)
            except ProviderError as error:
                warnings.warn(f"{error}; taking the CPU instead", stacklevel=2)
        provider = "cpu"
    elif reason := why_not(provider):
        raise ProviderError(f"--provider {provider}: {reason}")
    return _open(content, source, provider, threads, settings)


def run_session(session: Any, output: str, images: np.ndarray) -> np.ndarray:
    """What a session answers to a batch.

    Raises:
        ProviderError: onnxruntime fails, as on a GPU whose memory others have filled since.
    """
    try:
        [answer] = session.run([output], {IMAGES: images})
    except Exception as error:  # as where it is opened: a class per status
        reason = " ".join(str(error).split())[:300]
        raise ProviderError(
            f"onnxruntime on {session.get_providers()[0]} failed with {len(images)} pictures: "
            f"{reason}. A smaller --batch-size or --provider cpu may help; --resume keeps what is "
            "finished"
        ) from None
    found: np.ndarray = answer
    return found


def _open(
    content: bytes,
    source: Path,
    provider: str,
    threads: int | None,
    settings: Mapping[str, str] | None,
) -> Any:
    """As `open_session`, on a provider that `why_not` has nothing against."""
    ort = import_onnxruntime()
    wanted = PROVIDERS[provider]
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; the fallback warning is checked for below
    if threads is not None:
        options.intra_op_num_threads = threads
    # What TensorRT cannot compute goes to CUDA before it goes to the CPU.
    chain = [(wanted, {**SETTINGS.get(provider, {}), **(settings or {})})]
    if provider == "tensorrt":
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # it has no setting of its own for that
        chain.append((PROVIDERS["cuda"], SETTINGS["cuda"]))
    try:
        # Without its own fallback, which goes to the CPU, now or in the middle of a job.
        session = ort.InferenceSession(content, options, providers=chain, enable_fallback=0)
    except Exception as error:  # onnxruntime has a class per status, with no useful base
        reason = " ".join(str(error).split())[:300]
        if provider != "cpu":
            raise ProviderError(f"--provider {provider}: cannot run {source}: {reason}") from None
        raise CheckpointError(f"{source}: onnxruntime cannot run it: {reason}") from None
    if session.get_providers()[0] != wanted:
        raise ProviderError(
            f"--provider {provider}: onnxruntime gave {session.get_providers()[0]} instead; "
            "maskcls-doctor shows what is missing"
        )
    return session


def import_onnxruntime() -> Any:
    """The package, its CUDA libraries loaded where there are any.

    Raises:
        MissingExtraError: it is not installed.
        ProviderError: it is, and cannot be imported.
    """
    try:
        import onnxruntime
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime":
            purpose = "labelling with ONNX files"
            raise MissingExtraError("onnxruntime", "runtime", purpose) from None
        # Such as a library of the system that is missing.
        raise ProviderError(f"onnxruntime cannot be imported: {error}") from None
    return onnxruntime


def why_not(provider: str) -> str:
    """Why a provider cannot work on this machine, and the way out; empty where it can."""
    ort = import_onnxruntime()
    wanted = PROVIDERS[provider]
    if provider == "cpu":
        return ""
    if wanted not in ort.get_available_providers():
        return (
            f"onnxruntime {ort.__version__} is built without it (it has "
            f"{', '.join(ort.get_available_providers())}); install onnxruntime-gpu[cuda,cudnn] "
            "in place of onnxruntime, or take --provider cpu"
        )
    if reason := _cannot_load("libcuda.so.1", "nvcuda.dll"):
        return f"no NVIDIA driver here ({reason}); install one, or take --provider cpu"
    ort.preload_dlls()
    folder = Path(ort.__file__).parent / "capi"
    for name in ("shared", provider):
        for file in folder.glob(f"*onnxruntime_providers_{name}.*"):
            if reason := _cannot_load(str(file), str(file)):
                return (
                    f"its libraries cannot be loaded ({reason}); install "
                    f"{'TensorRT' if provider == 'tensorrt' else 'onnxruntime-gpu[cuda,cudnn]'}, "
                    "or take --provider cpu"
                )
    return ""


def _cannot_load(linux: str, windows: str) -> str:
    """The loader's message; empty where the library loads."""
    try:
        ctypes.CDLL(windows if os.name == "nt" else linux, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return str(error)
    return ""
