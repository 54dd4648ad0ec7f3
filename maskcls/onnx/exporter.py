"""Checkpoints → `mask_gender.onnx`, `age.onnx` and the fused `maskcls.onnx`, compared with PyTorch
on real pictures before any of them gets its name."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx
import torch

from maskcls.checkpoints import file_digest, open_checkpoint
from maskcls.classifier import TorchClassifier
from maskcls.data.profiles import Profile, locate, read_profiles
from maskcls.data.runs import labelled_pictures, people_of_run
from maskcls.data.splits import read_split, split_hash
from maskcls.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ExportError,
    PictureError,
    unknown,
)
from maskcls.evaluation.answers import Answers
from maskcls.files import remove_left_over, replacing, write_atomic
from maskcls.images import picture_digest, read_image
from maskcls.labels import ATTRIBUTES, MULTI, TASKS, Task
from maskcls.manifest import ONNX_KEY, PRECISIONS, SEEN_KEY, Manifest, OnnxManifest
from maskcls.models import restore_model
from maskcls.onnx.card import CARD_FILE, Compared, Side, model_card
from maskcls.onnx.convert import OPSET, convert
from maskcls.onnx.fuse import fuse
from maskcls.onnx.parity import MAX_F1_DROP, Parity, Pictures, compare, load_pictures
from maskcls.onnx.quantise import to_fp16, to_int8
from maskcls.onnx.triton import remove_model, write_repository
from maskcls.provenance import fingerprint
from maskcls.runtime.session import open_session, write_seen
from maskcls.runtime.sources import list_pictures

FUSED_FILE = "maskcls.onnx"
PARITY_FILE = "parity.json"
CALIBRATION_PICTURES = 256
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
        ExportError: a network cannot be converted, or its file does not answer as PyTorch does.
        CheckpointError: a checkpoint that cannot be read, or one task twice.
        ConfigError: no such precision.
        DataError: no pictures to compare on, or to calibrate int8 on.
    """
    if precision not in PRECISIONS:
        raise ConfigError(unknown("precision", precision, PRECISIONS))
    networks = []
    out.mkdir(parents=True, exist_ok=True)  # or fail before the work, not after it
    for path in checkpoints:
        content, source = open_checkpoint(path)
        model, manifest = restore_model(content, source)
        say(f"{manifest.task}: {manifest.model} from {source}")
        proto = convert(model, manifest)
        seen = content.get("seen")
        known = None if seen is None else frozenset(seen.tolist())
        networks.append(_Network(path, manifest, proto, file_digest(source), known))
    tasks = [network.manifest.task for network in networks]
    if len(set(tasks)) < len(tasks):
        raise CheckpointError(f"two networks for one task: {', '.join(tasks)}")

    answered = [name for n in networks for name in n.manifest.get_task().attributes]
    complete = sorted(answered) == sorted(ATTRIBUTES)
    if len(networks) > 1 and not complete:
        raise CheckpointError(
            f"networks of {' and '.join(tasks)} do not answer {', '.join(ATTRIBUTES)} once each; "
            "give one of each branch, or a single network"
        )
    if input_size is not None and not complete:
        raise ConfigError(
            f"input_size {input_size}: is of {FUSED_FILE}, which needs networks of "
            f"{', '.join(ATTRIBUTES)}; {tasks[0]}.onnx takes what its network takes"
        )
    listed, people, side = _listed(networks, pictures, max_pictures, say)
    say(f"comparing with PyTorch on {len(listed)} pictures")
    loaded = load_pictures(listed, say)
    if not loaded.images:
        raise DataError(f"none of {len(listed)} pictures to compare on can be read")
    reference = TorchClassifier(checkpoints, torch.device("cpu"), complete=complete)
    calibration = [_calibration(n) if precision == "int8" else None for n in networks]
    for spared in SPARED if precision == "int8" else (0,):
        converted = [
            dataclasses.replace(network, proto=_smaller(network.proto, precision, pixels, spared))
            for network, pixels in zip(networks, calibration, strict=True)
        ]
        files = _files(converted, precision, input_size, complete)
        sessions = {
            name: open_session(proto.SerializeToString(), out / name, "cpu")
            for name, (proto, _) in files.items()
        }
        parity = compare(
            reference,
            tasks,
            [sessions[f"{task}.onnx"] for task in tasks],
            sessions.get(FUSED_FILE),
            loaded,
            precision=precision,
            input_size=input_size,
            max_f1_drop=max_f1_drop,
        )
        if (drop := parity.f1_pytorch - parity.f1_onnx) <= max_f1_drop:
            break
        if precision == "int8":
            say(f"int8 costs {drop:.4f} of macro F1 with {spared} tensors spared")
    verdict = parity.to_dict() | ({"spared_tensors": spared} if precision == "int8" else {})
    text = (json.dumps(verdict, indent=1) + "\n").encode()
    # Of an earlier export: it must not pass for this one, nor judge what is half written.
    names = (*files, FUSED_FILE)
    served = list(files)[-1]  # the fused file, or the single network
    stale = [out / PARITY_FILE, out / CARD_FILE]
    stale += [out / name for name in names if parity.failures or name not in files]
    for file in stale:
        file.unlink(missing_ok=True)
    for name in (*(f"{task}.onnx" for task in TASKS), FUSED_FILE):
        if parity.failures or not triton or name != served:
            remove_model(out, name)
    if parity.failures:
        write_atomic(out / PARITY_FILE, text)
        raise ExportError(
            f"does not answer as PyTorch does: {'; '.join(parity.failures)}. Nothing was written "
            f"but {out / PARITY_FILE}"
        )
    seen_by_all = _seen(networks)
    trained_on = {f"{network.manifest.task}.onnx": network.seen for network in networks}
    with contextlib.ExitStack() as stack:
        for name in files:
            remove_left_over(out / name)
        for name, (proto, described) in files.items():
            described = dataclasses.replace(described, parity=verdict)
            entries = {ONNX_KEY: described.to_json()}
            if (seen_text := write_seen(trained_on.get(name, seen_by_all))) is not None:
                entries[SEEN_KEY] = seen_text
            onnx.helper.set_model_props(proto, entries)
            onnx.save(proto, stack.enter_context(replacing(out / name)))
        for name in files:  # a kill among the renames leaves none of another export beside these
            (out / name).unlink(missing_ok=True)
    task = MULTI if complete else networks[0].manifest.get_task()
    answers = _answers(loaded, people, parity.labels, task)
    copies = sum(fingerprint(picture_digest(path)) in (seen_by_all or ()) for path in loaded.paths)
    compared = Compared(answers, side, seen_by_all, copies)
    card = model_card(described, [_split(network) for network in networks], compared)
    write_atomic(out / CARD_FILE, card.encode("utf-8", errors="backslashreplace"))
    written = tuple(out / name for name in files)
    repository = write_repository(out / served, out) if triton else None
    write_atomic(out / PARITY_FILE, text)
    return ExportResult(written, out / CARD_FILE, parity, repository)


def _smaller(
    proto: onnx.ModelProto, precision: str, pixels: np.ndarray | None, spared: int
) -> onnx.ModelProto:
    if precision == "fp16":
        return to_fp16(proto)
    return proto if pixels is None else to_int8(proto, pixels, spared)


def _files(
    networks: Sequence[_Network],
    precision: str,
    input_size: tuple[int, int] | None,
    complete: bool,
) -> dict[str, tuple[onnx.ModelProto, OnnxManifest]]:
    """What is written, by name: every network, and all in one where they are complete."""
    files = {
        f"{network.manifest.task}.onnx": (
            network.proto,
            _describe("network", [network], precision, None),
        )
        for network in networks
    }
    if complete:
        whole = fuse([(n.proto, n.manifest) for n in networks], input_size)
        files[FUSED_FILE] = whole, _describe("fused", networks, precision, input_size)
    return files


def _describe(
    kind: str,
    networks: Sequence[_Network],
    precision: str,
    input_size: tuple[int, int] | None,
) -> OnnxManifest:
    return OnnxManifest(
        kind=kind,
        networks=tuple(network.manifest.without_places() for network in networks),
        checkpoints=tuple(network.sha256 for network in networks),
        precision=precision,
        opset=OPSET,
        input_size=input_size,
        versions=_versions(),
    )


def _listed(
    networks: Sequence[_Network],
    folder: Path | None,
    most: int,
    say: Callable[[str], None],
) -> tuple[list[tuple[Path, int | None]], list[Profile], Side | None]:
    """Pictures to compare on, with their labels where they are known; the people on them; and the
    side of the split that these are of, None for those of `folder`.

    Raises:
        DataError: there are none.
    """
    listed: Sequence[tuple[Path, int | None]]
    people: list[Profile] = []
    side: Side | None = None
    if folder is None:
        side = "val"
        people = _people(networks[0], side)
        if not people:  # an ensemble of folds: each person has trained some of it
            say(
                f"nobody is new to all networks of {networks[0].path}: the comparison, and what "
                "macro F1 it costs, are of people who trained it; --parity-images names others"
            )
            side = "train"
            people = _people(networks[0], side)
        listed = labelled_pictures(people)
    else:
        try:
            people = read_profiles(folder)
            listed = labelled_pictures(people)
        except DataError as error:
            if folder.is_dir() and locate(folder)[1].is_file():  # it is to have labels
                raise
            listed = [(source.path, None) for source in list_pictures(folder)]
            say(f"the pictures of {folder} have no labels: {error}")
    order = np.random.default_rng(0).permutation(len(listed))[:most]
    return [listed[index] for index in order], people, side


def _answers(
    pictures: Pictures,
    people: Sequence[Profile],
    labels: np.ndarray,
    task: Task,
) -> Answers | None:
    """What the files answered, `labels` of `task`; None where nobody knows what is right."""
    if pictures.truth is None:
        return None
    owners = {picture.path: person for person in people for picture in person.pictures}
    shown = [owners[path] for path in pictures.paths]
    return Answers(
        task,
        task.from_multi(pictures.truth),
        labels,
        MULTI.decode(pictures.truth),
        people=[person.person for person in shown],
        races=[person.race for person in shown],
    )


def _seen(networks: Sequence[_Network]) -> frozenset[int] | None:
    """Whom one of them was trained on; None where one does not say."""
    known = [network.seen for network in networks]
    return None if None in known else frozenset().union(*(seen for seen in known if seen))


def _split(network: _Network) -> str | None:
    """The text of the `split.csv` that a network was trained with, None where it is gone."""
    try:
        text = read_split(network.path.parent / "split.csv")
    except OSError:
        return None
    return text if split_hash(text) == network.manifest.split_hash else None


def _calibration(network: _Network) -> np.ndarray:
    """Normalised training pictures, float32 (N, 3, H, W): never of people who validate."""
    listed = labelled_pictures(_people(network, "train"))
    order = np.random.default_rng(0).permutation(len(listed))[:CALIBRATION_PICTURES]
    spec = network.manifest.preprocess
    pixels = []
    for index in order:
        try:
            pixels.append(spec.resize(read_image(listed[index][0])))
        except PictureError:
            continue
    if not pixels:
        raise DataError(f"{network.path}: no training picture can be read to calibrate int8 on")
    return spec.normalise(np.stack(pixels))


def _people(network: _Network, side: str) -> list[Profile]:
    way_out = "give pictures with --parity-images DIR" if side == "val" else "int8 needs them"
    return people_of_run(network.path, network.manifest, side, way_out)


def _versions() -> dict[str, str]:
    found = {}
    for package in VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
