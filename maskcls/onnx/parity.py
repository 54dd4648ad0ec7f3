"""The gate of every export: the same real pictures through PyTorch and through the ONNX files.

Two comparisons. Through the network alone: the same normalised pixels, logits against logits. From
file to label: PyTorch behind Pillow's resize against the files as a user runs them, with what it
costs to bring pictures to the one size that a file may take. Networks whose answers hardly vary are
refused: an untrained EfficientNet answers its bias to everything, and any comparison of it reads
0.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskcls.classifier import TorchClassifier
from maskcls.errors import PictureError
from maskcls.evaluation.scoring import confusion_matrix, scores_from_confusion
from maskcls.images import read_image
from maskcls.labels import MULTI, TASKS, combine, softmax
from maskcls.preprocessing import PreprocessSpec
from maskcls.runtime.session import IMAGES, LOGITS

BATCH_SIZES = (1, 2, 7, 32)
MAX_BYTES = 2_000_000_000  # of decoded pictures, which are compared at their full size
FEW = 64
"""Pictures of the comparisons in small batches; the largest batch size takes all."""
MAX_LOGIT_DIFFERENCE = 1e-3
MAX_FLIP_SHARE = 1e-3
MAX_F1_DROP = 0.005
MIN_VARIATION = 10 * MAX_LOGIT_DIFFERENCE
"""Of a logit over the pictures, largest minus smallest: where it is not far above what may differ,
nothing was compared."""


@dataclass(frozen=True)
class Difference:
    """Two answers to the same pictures."""

    pictures: int
    max_logit: float
    mean_logit: float
    max_probability: float
    mean_probability: float
    flips: int  # pictures whose most probable class differs
    variation: float  # of PyTorch's logits over the pictures


@dataclass(frozen=True)
class Parity:
    """What the comparison came to. `failures` is empty when the export may be trusted."""

    pictures: int
    networks: Mapping[str, Difference]  # task → through the network alone
    label_flips: int  # from file to label, of `pictures` as they are
    flips_by_class: Mapping[str, int]  # PyTorch's class → flips, where there are any
    max_probability: float  # from file to label
    f1_pytorch: float
    f1_given: float  # of PyTorch on what the file is given: smaller ones, with an input size
    f1_onnx: float
    f1_of: str  # what the macro F1 is measured against
    failures: tuple[str, ...]
    labels: np.ndarray = field(compare=False)  # (pictures,) classes that the files answered

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; without `labels`."""
        values = asdict(self) | {"passed": not self.failures}
        del values["labels"]
        return values


@dataclass(frozen=True)
class Pictures:
    """Upright RGB pictures; `truth` is their 18-class label, None where nobody knows."""

    images: tuple[Image.Image, ...]
    truth: np.ndarray | None
    paths: tuple[Path, ...]


def load_pictures(
    listed: Sequence[tuple[Path, int | None]], say: Callable[[str], None] = print
) -> Pictures:
    """Decodes pictures, as many as `MAX_BYTES` hold; one that cannot be read is left out."""
    images: list[Image.Image] = []
    truth, paths = [], []
    size = 0
    for path, label in listed:
        try:
            image = read_image(path)
        except PictureError:
            continue
        size += 3 * image.width * image.height
        if images and size > MAX_BYTES:
            say(f"the first {len(images)} fill {MAX_BYTES / 1e9:g} GB decoded, and are enough")
            break
        images.append(image)
        truth.append(label)
        paths.append(path)
    known = [label for label in truth if label is not None]
    labels = np.array(known) if len(known) == len(truth) else None
    return Pictures(tuple(images), labels, tuple(paths))


def compare(
    reference: TorchClassifier,
    tasks: Sequence[str],
    networks: Sequence[Any],
    fused: Any | None,
    pictures: Pictures,
    *,
    precision: str,
    input_size: tuple[int, int] | None = None,
    max_f1_drop: float = MAX_F1_DROP,
) -> Parity:
    """PyTorch against onnxruntime sessions: of each network, in the order of `tasks`, and of the
    fused file where there is one. `input_size`: (height, width) of one that takes a single size, to
    which a caller brings pictures. The file has to answer to these as PyTorch does; what they cost
    against the pictures as they are, macro F1 measures."""
    failures: list[str] = []
    differences: dict[str, Difference] = {}
    expected: dict[str, np.ndarray] = {}
    answered: dict[str, np.ndarray] = {}
    for index, (task, session) in enumerate(zip(tasks, networks, strict=True)):
        pixels = _resized(reference, index, pictures.images)
        logits = _logits(reference, index, pixels)
        normalised = reference.specs[index].normalise(pixels)
        own, found, failed = _through_network(task, session, normalised, logits)
        if precision == "fp32":
            failures += failed
        if found.variation < MIN_VARIATION:
            failures.append(
                f"{task}: the logits vary by {found.variation:.2g} over {len(logits)} pictures, so "
                "the comparison says nothing (an untrained network?)"
            )
        differences[task] = found
        expected[task], answered[task] = softmax(logits), softmax(own)

    if fused is None:
        [(task, before)] = expected.items()
        given, after = before, answered[task]
        labels = after.argmax(axis=1)
        wrong = labels != before.argmax(axis=1)
    else:
        before = given = combine(expected)
        images = _fitted(pictures.images, input_size)
        if input_size is not None:  # PyTorch on what the file is given
            given = combine(
                {
                    task: softmax(_logits(reference, index, _resized(reference, index, images)))
                    for index, task in enumerate(tasks)
                }
            )
        after, labels, wrong = _file_to_label(fused, given.argmax(axis=1), images)
    if precision == "fp32" and wrong.sum() > MAX_FLIP_SHARE * len(wrong):
        failures.append(f"from file to label {wrong.sum()} of {len(wrong)} labels differ")
    flips = wrong if given is before else labels != before.argmax(axis=1)
    names = MULTI.class_names if fused is not None else TASKS[tasks[0]].class_names
    by_class = {
        names[label]: int(count)
        for label, count in enumerate(np.bincount(before.argmax(axis=1)[flips]))
        if count
    }
    truth = _truth(pictures, tasks, fused is not None)
    scored = truth if truth is not None else before.argmax(axis=1)
    f1_pytorch, f1_given, f1_onnx = (
        scores_from_confusion(confusion_matrix(scored, found, before.shape[1])).macro_f1_of_true
        for found in (before.argmax(axis=1), given.argmax(axis=1), labels)
    )
    if f1_pytorch - f1_onnx > max_f1_drop:
        fall = f"from {f1_pytorch:.4f} to {f1_onnx:.4f}, by more than {max_f1_drop:g}"
        if (size_alone := f1_pytorch - f1_given) > max_f1_drop:
            fall += f", of which the input size costs {size_alone:.4f}: take a larger one"
        failures.append(f"macro F1 falls {fall}; --max-f1-drop allows more")
    return Parity(
        pictures=len(pictures.images),
        networks=differences,
        label_flips=int(flips.sum()),
        flips_by_class=by_class,
        max_probability=float(np.abs(before - after).max()),
        f1_pytorch=f1_pytorch,
        f1_given=f1_given,
        f1_onnx=f1_onnx,
        f1_of="labels of the data" if truth is not None else "the labels that PyTorch gives",
        failures=tuple(dict.fromkeys(failures)),
        labels=labels,
    )


def _resized(reference: TorchClassifier, index: int, images: Sequence[Image.Image]) -> np.ndarray:
    """As a network takes them: uint8 (N, H, W, 3)."""
    return np.stack([reference.specs[index].resize(image) for image in images])


def _logits(reference: TorchClassifier, index: int, pixels: np.ndarray) -> np.ndarray:
    """PyTorch's (N, classes)."""
    parts = _batches(pixels, max(BATCH_SIZES))
    return np.concatenate([reference.logits(index, part) for part in parts])


def _through_network(
    task: str, session: Any, normalised: np.ndarray, logits: np.ndarray
) -> tuple[np.ndarray, Difference, list[str]]:
    """A session's logits (N, classes) in the largest batches; how far they are from PyTorch's, of
    batches of any size; and what of that no float32 may have."""
    failures: list[str] = []
    extremes: list[Difference] = []
    for size in BATCH_SIZES:  # the largest comes last, with all pictures
        part = normalised if size == max(BATCH_SIZES) else normalised[:FEW]
        own = np.concatenate(
            [session.run([LOGITS], {IMAGES: batch})[0] for batch in _batches(part, size)]
        )
        found = _difference(logits[: len(own)], own)
        extremes.append(found)
        failures += _network_failures(task, size, found)
    worst = replace(
        found,
        max_logit=float(np.max([each.max_logit for each in extremes])),  # nan stays
        max_probability=float(np.max([each.max_probability for each in extremes])),
    )
    return own, worst, failures


def _fitted(images: Sequence[Image.Image], size: tuple[int, int] | None) -> Sequence[Image.Image]:
    """As a caller brings them to the one size that a file takes."""
    if size is None:
        return images
    spec = PreprocessSpec(height=size[0], width=size[1])
    return [Image.fromarray(spec.resize(image)) for image in images]


def _file_to_label(
    fused: Any, expected: np.ndarray, pictures: Sequence[Image.Image]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities (N, 18) and labels (N,) of the fused file in the largest batches; and (N,)
    whether a picture's label differs from the expected one in a batch of any size."""
    count = len(expected)
    probabilities = np.empty((count, MULTI.num_classes), dtype=np.float32)
    labels = np.empty(count, dtype=np.int64)
    flips = np.zeros(count, dtype=bool)
    for size in BATCH_SIZES:  # the largest comes last
        images = pictures if size == max(BATCH_SIZES) else pictures[:FEW]
        for indices in _same_size(images, size):
            batch = np.stack([np.asarray(images[index]) for index in indices])
            probabilities[indices], labels[indices] = fused.run(
                ["class_prob", "label"], {IMAGES: batch}
            )
        flips[: len(images)] |= labels[: len(images)] != expected[: len(images)]
    return probabilities, labels, flips


def _same_size(images: Sequence[Image.Image], batch_size: int) -> list[list[int]]:
    """Indices in batches of pictures of one size."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image.size, []).append(index)
    return [
        indices[start : start + batch_size]
        for indices in groups.values()
        for start in range(0, len(indices), batch_size)
    ]


def _network_failures(task: str, size: int, found: Difference) -> list[str]:
    failures = []
    if not found.max_logit <= MAX_LOGIT_DIFFERENCE:  # nan fails, too
        failures.append(
            f"{task}: logits differ by up to {found.max_logit:.2g} at batch size {size}, "
            f"allowed is {MAX_LOGIT_DIFFERENCE:g}"
        )
    if found.flips:
        failures.append(f"{task}: {found.flips} labels differ at batch size {size}")
    return failures


def _difference(logits: np.ndarray, other: np.ndarray) -> Difference:
    delta = np.abs(logits - other)
    shares = np.abs(softmax(logits) - softmax(other))
    return Difference(
        pictures=len(logits),
        max_logit=float(delta.max()),
        mean_logit=float(delta.mean()),
        max_probability=float(shares.max()),
        mean_probability=float(shares.mean()),
        flips=int((logits.argmax(axis=1) != other.argmax(axis=1)).sum()),
        variation=float(np.ptp(logits, axis=0).max()),
    )


def _truth(pictures: Pictures, tasks: Sequence[str], fused: bool) -> np.ndarray | None:
    if pictures.truth is None or fused:
        return pictures.truth
    own: np.ndarray = TASKS[tasks[0]].from_multi(pictures.truth)
    return own


def _batches(array: np.ndarray, size: int) -> list[np.ndarray]:
    return [array[start : start + size] for start in range(0, len(array), size)]
