"""Checkpoints → `mask_gender.onnx`, `age.onnx` and the fused `maskcls.onnx`, compared with PyTorch
on real pictures before any of them gets its name."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch

from maskcls.classifier import TorchClassifier
from maskcls.data.runs import split_of_run
from maskcls.errors import CheckpointError, ConfigError, DataError, ExportError, unknown
from maskcls.evaluation.answers import Answers
from maskcls.files import locked, remove_left_over, replacing, write_atomic
from maskcls.images import picture_digest
from maskcls.labels import ATTRIBUTES, MULTI, TASKS
from maskcls.manifest import ONNX_KEY, PRECISIONS, SEEN_KEY, Manifest, OnnxManifest
from maskcls.models import open_trained
from maskcls.onnx.card import CARD_FILE, Compared, Side, model_card
from maskcls.onnx.convert import OPSET, convert
from maskcls.onnx.fuse import fuse
from maskcls.onnx.parity import MAX_F1_DROP, Parity, Pictures, compare
from maskcls.onnx.pictures import answers_on, calibration_pixels, pictures_to_compare_on
from maskcls.onnx.quantise import to_fp16, to_int8
from maskcls.onnx.triton import remove_model, write_repository
from maskcls.provenance import fingerprint, seen_by_all, versions
from maskcls.runtime.session import open_session, write_seen

FUSED_FILE = "maskcls.onnx"
PARITY_FILE = "parity.json"
SPARED = (0, 4, 12, 36)
"""Tensors of each network that int8 leaves in float32, from none on: the first number with which
macro F1 falls by no more than is allowed is taken."""
VERSIONS = ("maskcls", "torch", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime")


@dataclass(frozen=True)
class ExportResult:
    """Files that passed, and how."""

    files: tuple[Path, ...]
    card: Path
    parity: Parity
    repository: Path | None = None  # of Triton, where it was asked for


@dataclass(frozen=True)
class _Network:
    path: Path  # the checkpoint
    manifest: Manifest
    proto: onnx.ModelProto
    sha256: str
    seen: frozenset[int] | None  # as of `Engine.trained_on`


@dataclass(frozen=True)
class _File:
    """What is to be written under one name."""

    proto: onnx.ModelProto
    manifest: OnnxManifest
    seen: frozenset[int] | None  # by any of its networks


def export(
    checkpoints: Sequence[Path],
    out: Path,
    *,
    precision: str = "fp32",
    input_size: tuple[int, int] | None = None,
    pictures: Path | None = None,
    max_pictures: int = 1024,
    max_f1_drop: float = MAX_F1_DROP,
    triton: bool = False,
    say: Callable[[str], None] = print,
) -> ExportResult:
    """Writes one file per network, and the fused one where the networks answer every attribute.

    `pictures`: a data folder or any folder of pictures to compare on; default: the people who
    validated the run, or, where there are none, those who trained it, which is said.
    `max_pictures` of them are drawn at random, the same every time. `parity.json` is written in any
    case; the ONNX files and `model_card.md` only if the comparison passed. With `triton` the fused
    file, or the single network, is in a model repository, too. What an earlier export left
    and this one does not write anew goes, where it would pass for this one's: its fused file, its
    repository.

    Raises:
        ExportError: a network cannot be converted, or its file does not answer as PyTorch does, or
            another export is writing into `out`.
        CheckpointError: a checkpoint that cannot be read, one task twice, or none at all.
        ConfigError: no such precision.
        DataError: no pictures to compare on, or to calibrate int8 on.
    """
    if precision not in PRECISIONS:
        raise ConfigError(unknown("precision", precision, PRECISIONS))
    out.mkdir(parents=True, exist_ok=True)  # or fail before the work, not after it
    networks = _open_all(checkpoints, say)
    _require_whole(networks, input_size)
    complete = _is_complete(networks)
    first = networks[0]
    loaded, people, side = pictures_to_compare_on(
        first.path, first.manifest, pictures, max_pictures, say
    )
    reference = TorchClassifier(checkpoints, torch.device("cpu"), complete=complete)
    files, parity = _smallest_that_passes(
        networks,
        reference,
        loaded,
        out,
        precision=precision,
        input_size=input_size,
        max_f1_drop=max_f1_drop,
        say=say,
    )
    served = FUSED_FILE if complete else f"{first.manifest.task}.onnx"
    verdict = (json.dumps(files[served].manifest.parity, indent=1) + "\n").encode()
    task = MULTI if complete else first.manifest.get_task()
    answers = answers_on(loaded, people, parity.labels, task)
    with locked(out / ".lock", partial(_refuse_second, out)):
        _clear(out, files, served, failed=bool(parity.failures), triton=triton)
        if parity.failures:
            write_atomic(out / PARITY_FILE, verdict)
            raise ExportError(
                f"does not answer as PyTorch does: {'; '.join(parity.failures)}. Nothing was "
                f"written but {out / PARITY_FILE}"
            )
        _write(out, files)
        _write_card(out, networks, files[served], loaded, answers, side)
        repository = write_repository(out / served, out) if triton else None
        write_atomic(out / PARITY_FILE, verdict)  # the last: what it judges is whole
    written = tuple(out / name for name in files)
    return ExportResult(written, out / CARD_FILE, parity, repository)


def _refuse_second(out: Path) -> None:
    """
    Raises:
        ExportError: always.
    """
    raise ExportError(f"{out}: another export is writing into it; wait for its end")


def _open_all(checkpoints: Sequence[Path], say: Callable[[str], None]) -> list[_Network]:
    networks = []
    for path in checkpoints:
        trained = open_trained(path)
        manifest = trained.manifest
        say(f"{manifest.task}: {manifest.model} from {trained.source}")
        proto = convert(trained.model, manifest)
        networks.append(_Network(path, manifest, proto, trained.sha256, trained.seen))
    return networks


def _is_complete(networks: Sequence[_Network]) -> bool:
    """Whether they answer every attribute, once."""
    answered = [name for n in networks for name in n.manifest.get_task().attributes]
    return sorted(answered) == sorted(ATTRIBUTES)


def _require_whole(networks: Sequence[_Network], input_size: tuple[int, int] | None) -> None:
    """
    Raises:
        CheckpointError: none, one task twice, or several networks that do not answer everything.
        ConfigError: an `input_size`, and no fused file that could have it.
    """
    tasks = [network.manifest.task for network in networks]
    if not tasks:
        raise CheckpointError("no checkpoint to export")
    if len(set(tasks)) < len(tasks):
        raise CheckpointError(f"two networks for one task: {', '.join(tasks)}")
    if _is_complete(networks):
        return
    if len(networks) > 1:
        raise CheckpointError(
            f"networks of {' and '.join(tasks)} do not answer {', '.join(ATTRIBUTES)} once each; "
            "give one of each branch, or a single network"
        )
    if input_size is not None:
        raise ConfigError(
            f"input_size {input_size}: is of {FUSED_FILE}, which needs networks of "
            f"{', '.join(ATTRIBUTES)}; {tasks[0]}.onnx takes what its network takes"
        )


def _smallest_that_passes(
    networks: Sequence[_Network],
    reference: TorchClassifier,
    pictures: Pictures,
    out: Path,
    *,
    precision: str,
    input_size: tuple[int, int] | None,
    max_f1_drop: float,
    say: Callable[[str], None],
) -> tuple[dict[str, _File], Parity]:
    """The files by name, what their comparison came to in their manifests, and that. int8 spares
    more and more tensors until the score holds; where it never does, these are the last try's."""
    int8 = precision == "int8"
    pixels = [calibration_pixels(n.path, n.manifest) if int8 else None for n in networks]
    for spared in SPARED if int8 else (0,):
        converted = [
            replace(network, proto=_smaller(network.proto, precision, own, spared))
            for network, own in zip(networks, pixels, strict=True)
        ]
        files = _files(converted, precision, input_size)
        sessions = {
            name: open_session(file.proto.SerializeToString(), out / name, "cpu")
            for name, file in files.items()
        }
        parity = compare(
            reference,
            reference.tasks,
            [sessions[f"{task}.onnx"] for task in reference.tasks],
            sessions.get(FUSED_FILE),
            pictures,
            precision=precision,
            input_size=input_size,
            max_f1_drop=max_f1_drop,
        )
        cost = parity.f1_given - parity.f1_onnx  # without that of an input size
        if parity.f1_pytorch - parity.f1_onnx <= max_f1_drop or cost <= 0:
            break
        if int8:
            say(f"int8 costs {cost:.4f} of macro F1 with {spared} tensors spared")
    verdict = parity.to_dict() | ({"spared_tensors": spared} if int8 else {})
    judged = {
        name: replace(file, manifest=replace(file.manifest, parity=verdict))
        for name, file in files.items()
    }
    return judged, parity


def _smaller(
    proto: onnx.ModelProto, precision: str, pixels: np.ndarray | None, spared: int
) -> onnx.ModelProto:
    if precision == "fp16":
        return to_fp16(proto)
    return proto if pixels is None else to_int8(proto, pixels, spared)


def _files(
    networks: Sequence[_Network], precision: str, input_size: tuple[int, int] | None
) -> dict[str, _File]:
    """What is written, by name: every network, and all in one where they are complete."""
    files = {
        f"{network.manifest.task}.onnx": _File(
            network.proto, _describe("network", [network], precision, None), network.seen
        )
        for network in networks
    }
    if _is_complete(networks):
        files[FUSED_FILE] = _File(
            fuse([(network.proto, network.manifest) for network in networks], input_size),
            _describe("fused", networks, precision, input_size),
            seen_by_all(network.seen for network in networks),
        )
    return files


def _describe(
    kind: str, networks: Sequence[_Network], precision: str, input_size: tuple[int, int] | None
) -> OnnxManifest:
    return OnnxManifest(
        kind=kind,
        networks=tuple(network.manifest.without_places() for network in networks),
        checkpoints=tuple(network.sha256 for network in networks),
        precision=precision,
        opset=OPSET,
        input_size=input_size,
        versions=versions(VERSIONS),
    )


def _clear(out: Path, files: Collection[str], served: str, *, failed: bool, triton: bool) -> None:
    """Removes what an earlier export left and this one does not write anew, or writes at the end:
    it must not pass for this one's, nor judge what is half written."""
    stale = [PARITY_FILE, CARD_FILE]
    stale += [name for name in (*files, FUSED_FILE) if failed or name not in files]
    for name in stale:
        (out / name).resolve().unlink(missing_ok=True)  # a link stays one
    for name in (*(f"{task}.onnx" for task in TASKS), FUSED_FILE):
        if failed or not triton or name != served:
            remove_model(out, name)


def _write(out: Path, files: Mapping[str, _File]) -> None:
    """All of them, or none."""
    with contextlib.ExitStack() as stack:
        for name in files:
            remove_left_over(out / name)
        for name, file in files.items():
            entries = {ONNX_KEY: file.manifest.to_json()}
            if (seen := write_seen(file.seen)) is not None:
                entries[SEEN_KEY] = seen
            onnx.helper.set_model_props(file.proto, entries)
            onnx.save(file.proto, stack.enter_context(replacing(out / name)))
        for name in files:  # a kill among the renames leaves none of another export beside these
            (out / name).resolve().unlink(missing_ok=True)


def _write_card(
    out: Path,
    networks: Sequence[_Network],
    file: _File,
    pictures: Pictures,
    answers: Answers | None,
    side: Side | None,
) -> None:
    """The model card of a file: of what it answered, `answers`, to the pictures of a `side`."""
    copies = sum(fingerprint(picture_digest(path)) in (file.seen or ()) for path in pictures.paths)
    compared = Compared(answers, side, file.seen, copies)
    card = model_card(file.manifest, [_split(network) for network in networks], compared)
    write_atomic(out / CARD_FILE, card.encode("utf-8", errors="backslashreplace"))


def _split(network: _Network) -> str | None:
    """The text of the `split.csv` that a network was trained with, None where it is gone."""
    try:
        return split_of_run(network.path, network.manifest)
    except DataError:
        return None
