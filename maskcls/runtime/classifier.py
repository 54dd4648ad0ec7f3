"""The classifier for programs: pictures in, typed answers out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image

from maskcls.errors import DataError
from maskcls.labels import ATTRIBUTES, MULTI
from maskcls.runtime.engines import open_onnx
from maskcls.runtime.labelling import Decoded, decoded_batches, predict, prepare
from maskcls.runtime.sources import Source


@dataclass(frozen=True)
class Prediction:
    """What one picture shows. Where `error` says why it cannot be read, the rest is empty."""

    label: int | None = None  # 0–17: mask * 6 + gender * 3 + age
    mask: str = ""
    gender: str = ""
    age: str = ""
    probabilities: Mapping[str, tuple[float, ...]] | None = None  # attribute → one per class
    error: str = ""


class Classifier:
    """Labels pictures with ONNX files of `maskcls-export`.

        with Classifier("maskcls.onnx") as classifier:
            for path, answer in zip(paths, classifier.predict(paths)):
                print(path, answer.mask, answer.gender, answer.age)

    `model`: the fused file, or single networks that together answer everything. `provider`: `auto`,
    `cpu`, `cuda` or `tensorrt`; one that cannot be had is an error. `workers`: threads that decode.

    Raises:
        CheckpointError: a file that is not ours, or not whole.
        ProviderError: the provider cannot be had; says why.
    """

    def __init__(
        self,
        model: str | Path | Sequence[str | Path],
        *,
        provider: str = "auto",
        batch_size: int = 16,
        workers: int = 2,
    ) -> None:
        paths = [model] if isinstance(model, str | Path) else list(model)
        self._engine = open_onnx([Path(path) for path in paths], provider)
        self._batch_size = batch_size
        self._workers = workers
        self.provider = self._engine.provider
        """The one that computes, by onnxruntime's name."""

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
        """Frees the session and its memory."""
        del self._engine

    def predict(self, pictures: Iterable[str | Path | np.ndarray]) -> list[Prediction]:
        """Answers in the order of the pictures: files, or upright RGB arrays, uint8 (H, W, 3).

        A file that cannot be read gives an answer with `error`.

        Raises:
            DataError: an array of another type or shape; files and arrays mixed.
        """
        listed = list(pictures)
        arrays = [item for item in listed if isinstance(item, np.ndarray)]
        if not arrays:
            sources = [Source(str(path), Path(path)) for path in listed]  # type: ignore[arg-type]
            batches: Iterable[list[Decoded]] = decoded_batches(
                self._engine.specs, sources, self._batch_size, self._workers, None
            )
        elif len(arrays) == len(listed):
            batches = self._prepared(arrays)
        else:
            raise DataError("predict takes files or arrays, not both at once")
        return [answer for batch in batches for answer in self._answers(batch)]

    def _prepared(self, arrays: Sequence[np.ndarray]) -> Iterable[list[Decoded]]:
        for start in range(0, len(arrays), self._batch_size):
            batch = []
            for array in arrays[start : start + self._batch_size]:
                if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
                    raise DataError(
                        f"an array of {array.dtype} {array.shape}: a picture is uint8 (H, W, 3)"
                    )
                pixels = prepare(Image.fromarray(array), self._engine.specs)
                batch.append(Decoded(Source("", Path()), pixels, False))
            yield batch

    def _answers(self, batch: Sequence[Decoded]) -> Iterable[Prediction]:
        good = [picture for picture in batch if not picture.error]
        rows = iter(predict(self._engine, good) if good else ())
        for picture in batch:
            yield Prediction(error=picture.error) if picture.error else _prediction(next(rows))


def _prediction(probabilities: np.ndarray) -> Prediction:
    label = int(probabilities.argmax())
    digits = MULTI.decode(label)
    named = {name: ATTRIBUTES[name][digit] for name, digit in digits.items()}
    marginals = MULTI.marginals(probabilities[None])
    return Prediction(
        label=label,
        **named,
        probabilities={name: tuple(values[0].tolist()) for name, values in marginals.items()},
    )
