"""What answers: probabilities of the 18 classes from pixels, whatever computes them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from maskcls.errors import CheckpointError, ProviderError
from maskcls.labels import MULTI, combine, require_all_attributes, softmax
from maskcls.preprocessing import PreprocessSpec
from maskcls.provenance import ModelFile, seen_by_all
from maskcls.runtime.probe import disagreement
from maskcls.runtime.session import (
    LOGITS,
    PROVIDERS,
    OnnxFile,
    open_session,
    read_onnx,
    run_session,
)

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of computing in a period of microseconds, as Linux limits a container."""
CPU_QUOTA = tuple(Path(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
"""The same two, where control groups are of version 1; a quota of -1 is none."""


class Engine(Protocol):
    """One network or several that together know mask, gender and age."""

    @property
    def specs(self) -> Sequence[PreprocessSpec | None]:
        """What each of its inputs is fed, in the order of `predict`'s argument; None: the whole
        picture at its own size."""

    @property
    def models(self) -> tuple[ModelFile, ...]:
        """The files it was loaded from."""

    @property
    def trained_on(self) -> frozenset[int] | None:
        """Fingerprints of the people and pictures it was trained on; None if it does not say."""

    @property
    def provider(self) -> str:
        """What computes: an execution provider of onnxruntime, or PyTorch's device."""

    @property
    def lanes(self) -> int:
        """How many batches it should be given at once, each by a thread of its own."""

    def predict(self, pixels: Sequence[Any]) -> np.ndarray:
        """Per spec uint8 (N, H, W, 3), or for None a list of N arrays (H, W, 3) of any sizes →
        probabilities of the 18 classes, float32 (N, 18)."""


class FusedEngine:
    """`maskcls.onnx`: raw pixels in, crop, resize and both networks in the graph.

    Raises:
        CheckpointError: a file that is not ours, or not whole.
        ProviderError: the provider cannot be had.
    """

    def __init__(
        self, path: Path, provider: str = "auto", lanes: int = 1, cores: int | None = None
    ) -> None:
        file = read_onnx(path)
        if file.manifest.kind != "fused":
            raise CheckpointError(
                f"{path}: answers {file.manifest.networks[0].task} only; give the fused file, or "
                "one file per branch"
            )
        self.manifest = file.manifest
        size = file.manifest.input_size
        self.specs: tuple[PreprocessSpec | None, ...] = (
            PreprocessSpec(height=size[0], width=size[1]) if size else None,
        )
        self.models = (ModelFile("fused", str(path), file.sha256),)
        self.trained_on = file.trained_on
        self._session = _open(file, provider, session_threads(lanes, cores))
        self.provider: str = self._session.get_providers()[0]
        self.lanes = lanes

    def predict(self, pixels: Sequence[Any]) -> np.ndarray:
        [pictures] = pixels
        answer = np.empty((len(pictures), MULTI.num_classes), dtype=np.float32)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, picture in enumerate(pictures):
            by_shape.setdefault(picture.shape, []).append(index)
        for indices in by_shape.values():
            batch = np.stack([pictures[index] for index in indices])
            answer[indices] = run_session(self._session, "class_prob", batch)
        return answer


class NetworksEngine:
    """Single networks, one file each: crop, resize and normalisation as their manifests say.

    Raises:
        CheckpointError: a file that is not ours, not whole, or networks that do not answer every
            attribute once.
        ProviderError: the provider cannot be had.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        provider: str = "auto",
        lanes: int = 1,
        cores: int | None = None,
    ) -> None:
        files = [read_onnx(path) for path in paths]
        for file in files:
            if file.manifest.kind == "fused":
                raise CheckpointError(f"{file.path}: answers everything already; give it alone")
        networks = [file.manifest.networks[0] for file in files]
        self._tasks = [network.get_task() for network in networks]
        require_all_attributes(self._tasks, paths)
        self._specs = tuple(network.preprocess for network in networks)
        self.specs: tuple[PreprocessSpec | None, ...] = self._specs
        self.models = tuple(
            ModelFile(task.name, str(file.path), file.sha256)
            for task, file in zip(self._tasks, files, strict=True)
        )
        self.trained_on = seen_by_all(file.trained_on for file in files)
        threads = session_threads(lanes, cores)
        self._sessions = [_open(file, provider, threads) for file in files]
        if len({session.get_providers()[0] for session in self._sessions}) > 1:
            # `auto`, where CUDA had room for some of them: all compute on what `provider` says.
            self._sessions = [_open(file, "cpu", threads) for file in files]
        self.provider: str = self._sessions[0].get_providers()[0]
        self.lanes = lanes

    def predict(self, pixels: Sequence[Any]) -> np.ndarray:
        parts = {}
        for session, task, spec, batch in zip(
            self._sessions, self._tasks, self._specs, pixels, strict=True
        ):
            logits = run_session(session, LOGITS, spec.normalise(batch))
            parts[task.name] = softmax(logits)
        return combine(parts)


def _open(file: OnnxFile, provider: str, threads: int | None) -> Any:
    """A session whose answers are the CPU's.

    Raises:
        ProviderError: the provider cannot be had, or answers otherwise; with `auto` a warning says
            so, and the CPU answers.
    """
    session = open_session(file.content, file.path, provider, threads)
    if session.get_providers()[0] == PROVIDERS["cpu"]:
        return session
    try:
        reason = disagreement(file, session, threads)
    except ProviderError as error:  # it opens, and cannot compute
        reason = str(error)
    if not reason:
        return session
    if provider != "auto":
        alone = " or the single networks" if file.manifest.kind == "fused" else ""
        raise ProviderError(f"--provider {provider}: {reason}. Take --provider cpu{alone}")
    warnings.warn(f"{reason}; taking the CPU instead", stacklevel=4)
    return open_session(file.content, file.path, "cpu", threads)


def open_onnx(
    paths: Sequence[Path], provider: str = "auto", lanes: int = 1, cores: int | None = None
) -> FusedEngine | NetworksEngine:
    """One fused file, or single networks that together answer everything.

    `lanes`: batches at once, which share the CPU's cores; the answers are the same.
    `cores`: how many of them all lanes may use; None: all that the process may.
    """
    if len(paths) == 1 and read_onnx(paths[0]).manifest.kind == "fused":
        return FusedEngine(paths[0], provider, lanes, cores)
    return NetworksEngine(paths, provider, lanes, cores)


def usable_cores() -> int:
    """Cores that this process may use: of the machine, by its affinity, and of a container that is
    given the time of so many."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    for files in ((CPU_MAX,), CPU_QUOTA):
        try:
            quota, period = map(int, " ".join(file.read_text() for file in files).split())
        except (OSError, ValueError):  # no control group, or "max"
            continue
        if quota > 0:
            cores = max(1, min(cores, -(-quota // period)))
    return cores


def session_threads(lanes: int, cores: int | None = None) -> int | None:
    """Of a session that so many lanes share: each of their threads computes, too, beside one less
    of the session's own, which makes as many as there are cores. None leaves it to onnxruntime,
    which takes the machine's cores, also those that this process may not use."""
    if lanes == 1 and cores is None and usable_cores() == os.cpu_count():
        return None
    return max(1, (cores or usable_cores()) - lanes + 1)
