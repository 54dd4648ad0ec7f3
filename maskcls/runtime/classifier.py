"""The classifier for programs: pictures in, typed answers out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, overload

import numpy as np
from PIL import Image

from maskcls.errors import ConfigError, PictureError
from maskcls.images import MAX_PIXELS, read_bytes, to_upright
from maskcls.labels import ATTRIBUTES, MULTI
from maskcls.runtime.engines import Engine, open_onnx
from maskcls.runtime.labelling import Decoded, ahead, decode_for, predict, prepare
from maskcls.runtime.sources import Source

Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""A file's path, a file's content, an opened picture, or upright RGB pixels, uint8 (H, W, 3)."""
KINDS = (str, os.PathLike, bytes, Image.Image, np.ndarray)
WANTED = "a path, bytes, a PIL image, or an array of uint8 (H, W, 3), RGB"


@dataclass(frozen=True)
class Prediction:
    """What one picture shows. Where `error` says why it cannot be read, the rest is empty."""

    label: int | None = None  # 0–17: mask * 6 + gender * 3 + age
    name: str = ""  # of the label, such as "not worn, female, 30-59"
    mask: str = ""  # "worn", "incorrect" or "not worn"
    gender: str = ""  # "male" or "female"
    age: str = ""  # "<30", "30-59" or ">=60"
    probabilities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """`mask`, `gender`, `age` and `label` → name of the class → probability."""
    error: str = ""


class Classifier:
    """Labels pictures with trained networks.

        with Classifier("maskcls.onnx") as classifier:
            answer = classifier.predict("photo.jpg")
            print(answer.mask, answer.gender, answer.age, answer.probabilities["age"])

    `model`: the fused file of `maskcls-export`, or single networks that together answer everything;
    or an `Engine` that is open already, as `maskcls.load` does for checkpoints. `provider`, of
    files: `auto`, `cpu`, `cuda` or `tensorrt`; one that cannot be had is an error. `workers`:
    threads that decode the pictures of a list.

    One classifier may be used by many threads at once.

    Raises:
        CheckpointError: a file that is not ours, or not whole.
        ProviderError: the provider cannot be had; says why.
        ConfigError: a batch or workers below 1.
    """

    def __init__(
        self,
        model: str | Path | Sequence[str | Path] | Engine,
        *,
        provider: str = "auto",
        batch_size: int = 16,
        workers: int = 2,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("workers", workers)):
            if value < 1:
                raise ConfigError(f"{name} {value}: must be 1 or more")
        if isinstance(model, str | Path):
            model = [model]
        if isinstance(model, Sequence):
            model = open_onnx([Path(path) for path in model], provider)
        self._engine: Engine | None = model
        self._batch_size = batch_size
        self._workers = workers
        self.provider = model.provider
        """What computes: an execution provider of onnxruntime, or PyTorch's device."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the session and its memory, once the calls that run have ended."""
        self._engine = None

    # A text or an array can be iterated over, too, but is one picture.
    @overload
    def predict(self, pictures: Picture) -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, pictures: Iterable[Picture]) -> list[Prediction]: ...

    def predict(self, pictures: Picture | Iterable[Picture]) -> Prediction | list[Prediction]:
        """The answer for one picture, or a list of answers in the order of several.

        In a list, a picture that cannot be read gives an answer with `error`, and the others are
        answered. Paths, bytes, PIL images and arrays may be mixed.

        Raises:
            PictureError: the one picture cannot be read, or is none.
            ValueError: the classifier is closed.
        """
        engine = self._engine
        if engine is None:
            raise ValueError("the classifier is closed")
        if isinstance(pictures, KINDS):
            decoded = _decode(pictures, "the picture", engine)
            if decoded.error:
                raise PictureError(decoded.error)
            return _answers(engine, [decoded])[0]
        named = [(picture, f"pictures[{index}]") for index, picture in enumerate(pictures)]
        images = [picture for picture, _ in named if isinstance(picture, Image.Image)]
        count = Counter(map(id, images))
        for image in images:
            # Two threads would read its file at once.
            if count[id(image)] > 1 and image.width * image.height <= MAX_PIXELS:
                with suppress(Exception):  # said when it is decoded
                    image.load()
        batches = ahead(lambda item: _decode(*item, engine), named, self._batch_size, self._workers)
        return [answer for batch in batches for answer in _answers(engine, batch)]


def _decode(picture: object, name: str, engine: Engine) -> Decoded:
    """`name`: of a picture without a path, in messages."""
    try:
        return Decoded(Source("", Path()), _pixels(picture, name, engine), False)
    except PictureError as error:
        return Decoded(Source("", Path()), (), False, str(error))


def _pixels(picture: object, name: str, engine: Engine) -> tuple[np.ndarray, ...]:
    """
    Raises:
        PictureError: it cannot be read, or is nothing that a picture can be.
    """
    match picture:
        case str() | os.PathLike():
            return decode_for(read_bytes(Path(picture)), Path(picture), engine.specs)
        case bytes():
            return decode_for(picture, name, engine.specs)
        case Image.Image():
            return prepare(to_upright(picture, name), engine.specs)
        case np.ndarray(dtype=np.uint8, ndim=3) if picture.shape[2] == 3 and picture.size:
            return prepare(to_upright(Image.fromarray(picture), name), engine.specs)
        case np.ndarray():
            raise PictureError(
                f"{name}: an array of {picture.dtype} {picture.shape}; a picture is {WANTED}"
            )
    raise PictureError(f"{name}: {type(picture).__name__}; a picture is {WANTED}")


def _answers(engine: Engine, batch: Sequence[Decoded]) -> list[Prediction]:
    good = [picture for picture in batch if not picture.error]
    rows = iter(predict(engine, good) if good else ())
    return [
        Prediction(error=picture.error) if picture.error else _prediction(next(rows))
        for picture in batch
    ]


def _prediction(probabilities: np.ndarray) -> Prediction:
    """Of the 18 classes, (18,)."""
    label = int(probabilities.argmax())
    digits = MULTI.decode(label)
    shares = MULTI.marginals(probabilities[None]) | {"label": probabilities[None]}
    classes = ATTRIBUTES | {"label": MULTI.class_names}
    return Prediction(
        label=label,
        name=MULTI.class_names[label],
        **{name: ATTRIBUTES[name][digit] for name, digit in digits.items()},
        probabilities={
            name: dict(zip(classes[name], values[0].tolist(), strict=True))
            for name, values in shares.items()
        },
    )
