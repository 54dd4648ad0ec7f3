"""From a list of pictures to a file of labels."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from maskcls.errors import DataError, MissingExtraError, PictureError
from maskcls.files import replacing
from maskcls.images import content_digest, decode, read_bytes
from maskcls.labels import ATTRIBUTES, MULTI
from maskcls.preprocessing import PreprocessSpec
from maskcls.provenance import ModelFile, Provenance, fingerprint, write_provenance
from maskcls.runtime.sources import Source


class Classifier(Protocol):
    """What answers: one network or several that together know mask, gender and age."""

    @property
    def specs(self) -> Sequence[PreprocessSpec]:
        """What each of its networks is fed, in the order of `predict`'s argument."""

    @property
    def models(self) -> tuple[ModelFile, ...]:
        """The files it was loaded from."""

    @property
    def trained_on(self) -> frozenset[int] | None:
        """Fingerprints of the people and pictures it was trained on; None if it does not say."""

    def predict(self, pixels: Sequence[np.ndarray]) -> Mapping[str, np.ndarray]:
        """uint8 (N, H, W, 3) per spec → attribute → probabilities float32 (N, classes)."""


@dataclass(frozen=True)
class LabellingResult:
    """What a labelling came to."""

    out: Path
    pictures: int
    errors: tuple[str, ...]  # one message per picture that could not be read
    seen_in_training: int | None


@dataclass(frozen=True)
class _Decoded:
    """A picture on its way: pixels per spec, or why there are none."""

    source: Source
    pixels: tuple[np.ndarray, ...]
    seen: bool
    error: str = ""


def inference(
    classifier: Classifier,
    sources: Sequence[Source],
    out: Path,
    *,
    batch_size: int = 32,
    workers: int = 2,
    probabilities: bool = False,
    strict: bool = False,
) -> LabellingResult:
    """Labels pictures with the 18 classes and writes `ImageID,ans` in their order.

    `out`: `.csv`, or `.parquet` (extra `parquet`). A picture that cannot be read has an empty `ans`
    and its reason in a column `error`, which a file without errors does not have. With
    `probabilities` there is a column per attribute and class. The file appears when it is complete;
    beside it lies its provenance.

    Raises:
        DataError: no picture was given, or none could be read.
        PictureError: with `strict`, a picture that cannot be read.
        MissingExtraError: Parquet without pyarrow.
    """
    if not sources:
        raise DataError("no pictures to label")
    rows: list[dict[str, object]] = []
    errors: list[str] = []
    seen = 0
    known = classifier.trained_on
    with tqdm(total=len(sources), desc="labelling", unit="img", disable=None) as bar:
        for batch in _decoded_batches(classifier, sources, batch_size, workers, known):
            good = [picture for picture in batch if not picture.error]
            answers = iter(_answer(classifier, good, probabilities))
            for picture in batch:
                if picture.error and strict:
                    raise PictureError(picture.error)
                if picture.error:
                    errors.append(picture.error)
                row = {"error": picture.error} if picture.error else next(answers)
                rows.append({"ImageID": picture.source.image_id, **row})
                seen += picture.seen
            bar.update(len(batch))
    if len(errors) == len(sources):
        raise DataError(f"none of {len(sources)} pictures can be read, first: {errors[0]}")

    columns = ["ImageID", "ans"]
    if probabilities:
        columns += [_column(name, value) for name, values in ATTRIBUTES.items() for value in values]
    _write(out, columns + (["error"] if errors else []), rows)
    seen_in_training = None if known is None else seen
    write_provenance(
        out, Provenance(len(sources), len(errors), seen_in_training, classifier.models)
    )
    return LabellingResult(out, len(sources), tuple(errors), seen_in_training)


def _decoded_batches(
    classifier: Classifier,
    sources: Sequence[Source],
    batch_size: int,
    workers: int,
    known: frozenset[int] | None,
) -> Iterator[list[_Decoded]]:
    """Batches in order; the next ones are decoded while the caller works on the present one, and
    never more than three are in memory."""
    specs = tuple(classifier.specs)

    def load(source: Source) -> _Decoded:
        try:
            content = read_bytes(source.path)
            image = decode(content, source.path)
        except PictureError as error:
            return _Decoded(source, (), False, str(error))
        # The same spec twice, as of two branches trained alike, is resized once.
        resized = {spec: spec.resize(image) for spec in dict.fromkeys(specs)}
        person = fingerprint(unicodedata.normalize("NFC", source.path.parent.name))
        seen = bool(known and (person in known or fingerprint(content_digest(content)) in known))
        return _Decoded(source, tuple(resized[spec] for spec in specs), seen)

    with ThreadPoolExecutor(workers) as pool:
        waiting: list[list[Future[_Decoded]]] = []
        try:
            for start in range(0, len(sources), batch_size):
                part = sources[start : start + batch_size]
                waiting.append([pool.submit(load, source) for source in part])
                if len(waiting) == 3:
                    yield [future.result() for future in waiting.pop(0)]
            while waiting:
                yield [future.result() for future in waiting.pop(0)]
        finally:
            pool.shutdown(cancel_futures=True)


def _answer(
    classifier: Classifier, pictures: Sequence[_Decoded], probabilities: bool
) -> Iterable[dict[str, object]]:
    """A row per picture, without its name."""
    if not pictures:
        return
    pixels = [
        np.stack([picture.pixels[index] for picture in pictures])
        for index in range(len(classifier.specs))
    ]
    predicted = classifier.predict(pixels)
    labels = MULTI.encode(**{name: predicted[name].argmax(axis=1) for name in ATTRIBUTES})
    for index, label in enumerate(labels):
        row: dict[str, object] = {"ans": int(label)}
        if probabilities:
            for name, values in ATTRIBUTES.items():
                for value, probability in zip(values, predicted[name][index], strict=True):
                    row[_column(name, value)] = round(float(probability), 6)
        yield row


def _column(attribute: str, value: str) -> str:
    return f"{attribute}: {value}"


def _write(out: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    with replacing(out) as temporary:
        if out.suffix.lower() == ".parquet":
            try:
                import pyarrow
                import pyarrow.parquet
            except ImportError:
                raise MissingExtraError("pyarrow", "parquet", f"{out}: Parquet") from None
            arrays = {name: [row.get(name) for row in rows] for name in columns}
            pyarrow.parquet.write_table(pyarrow.table(arrays), temporary)
        else:
            # surrogateescape: a file name that is no UTF-8 is written as it lies on the disk.
            with temporary.open(
                "w", encoding="utf-8", errors="surrogateescape", newline=""
            ) as file:
                writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
