"""From a list of pictures to a file of labels."""

from __future__ import annotations

import hashlib
import itertools
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskcls.errors import DataError, MissingExtraError, PictureError
from maskcls.files import replacing, write_rows
from maskcls.images import content_digest, decode, decode_pixels, read_bytes
from maskcls.labels import ATTRIBUTES, MULTI, probability_column
from maskcls.preprocessing import PreprocessSpec
from maskcls.provenance import Provenance, fingerprint, write_provenance
from maskcls.runtime.engines import Engine
from maskcls.runtime.parts import Parts, only_job
from maskcls.runtime.sources import Source

Item = TypeVar("Item")

PART = 512
"""Pictures per part, at least: what a killed job loses at most, and what is in memory of its rows.
"""
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the start of a formula (OWASP, CSV Injection)."""


@dataclass(frozen=True)
class LabellingResult:
    """What a labelling came to."""

    out: Path
    pictures: int
    errors: tuple[str, ...]  # one message per picture that could not be read
    seen_in_training: int | None


@dataclass(frozen=True)
class Decoded:
    """A picture on its way: pixels per spec, or why there are none."""

    source: Source
    pixels: tuple[np.ndarray, ...]
    seen: bool
    error: str = ""


def inference(
    engine: Engine,
    sources: Sequence[Source],
    out: Path,
    *,
    batch_size: int = 32,
    workers: int = 2,
    probabilities: bool = False,
    strict: bool = False,
    resume: bool = False,
    escape_formulas: bool = False,
) -> LabellingResult:
    """Labels pictures with the 18 classes and writes `ImageID,ans` in their order.

    `out`: `.csv`, or `.parquet` (extra `parquet`). A picture that cannot be read has an empty `ans`
    and its reason in a column `error`, which a file without errors does not have. With
    `probabilities` there is a column per attribute and class. The file appears when it is complete;
    beside it lies its provenance. Until then finished parts lie in `output.csv.parts/`; with
    `resume` an interrupted job goes on after them and ends with the same file.

    `escape_formulas`: in a CSV, text that a spreadsheet would run as a formula is preceded by `'`.

    Raises:
        DataError: no picture was given, or none could be read; or an unfinished job of this output
            is in the way.
        PictureError: with `strict`, a picture that cannot be read.
        MissingExtraError: Parquet without pyarrow.
    """
    if not sources:
        raise DataError("no pictures to label")
    if out.suffix.lower() == ".parquet":
        _import_pyarrow(out)  # or fail before the work, not after it
    with only_job(out):
        parts = Parts(out, _job_key(engine, sources, batch_size, probabilities), resume=resume)
        try:
            _label_rest(engine, sources, parts, batch_size, workers, probabilities, strict)
        finally:
            if parts.done == 0:  # nothing to go on from
                parts.remove()
        return _put_together(engine, sources, parts, out, probabilities, escape_formulas)


def _put_together(
    engine: Engine,
    sources: Sequence[Source],
    parts: Parts,
    out: Path,
    probabilities: bool,
    escape_formulas: bool,
) -> LabellingResult:
    """The output from all its parts, which are removed."""
    errors: list[str] = []
    seen = 0
    for row in parts.rows():
        seen += row["seen"]
        if "error" in row:
            errors.append(row["error"])
    if len(errors) == len(sources):
        parts.remove()
        raise DataError(f"none of {len(sources)} pictures can be read, first: {errors[0]}")

    columns = ["ImageID", "ans"]
    if probabilities:
        columns += [
            probability_column(name, value)
            for name, values in ATTRIBUTES.items()
            for value in values
        ]
    _write(out, columns + (["error"] if errors else []), parts, escape_formulas)
    seen_in_training = None if engine.trained_on is None else seen
    write_provenance(out, Provenance(len(sources), len(errors), seen_in_training, engine.models))
    parts.remove()
    return LabellingResult(out, len(sources), tuple(errors), seen_in_training)


def _label_rest(
    engine: Engine,
    sources: Sequence[Source],
    parts: Parts,
    batch_size: int,
    workers: int,
    probabilities: bool,
    strict: bool,
) -> None:
    """The parts that are not there yet. They hold whole batches, so a job that goes on computes
    the same batches as one that was never interrupted."""
    part_size = batch_size * max(1, PART // batch_size)
    start = min(parts.done * part_size, len(sources))
    known = engine.trained_on
    rows: list[dict[str, object]] = []
    with tqdm(total=len(sources), initial=start, desc="labelling", unit="img", disable=None) as bar:
        for batch, predicted in answered_batches(
            engine, sources[start:], batch_size, workers, known
        ):
            answers = iter(_rows(predicted, probabilities))
            for picture in batch:
                if picture.error and strict:
                    raise PictureError(picture.error)
                row = {"error": picture.error} if picture.error else next(answers)
                rows.append({"ImageID": picture.source.image_id, "seen": int(picture.seen), **row})
            if len(rows) >= part_size:
                parts.write(rows)
                rows = []
            bar.update(len(batch))
    if rows:
        parts.write(rows)


def _job_key(
    engine: Engine, sources: Sequence[Source], batch_size: int, probabilities: bool
) -> str:
    """What must be the same for a job to go on."""
    digest = hashlib.sha256()
    options = [batch_size, probabilities, *(model.sha256 for model in engine.models)]
    digest.update(json.dumps(options).encode())
    for source in sources:
        digest.update(json.dumps([source.image_id, str(source.path)]).encode())
    return digest.hexdigest()


def decoded_batches(
    specs: Sequence[PreprocessSpec | None],
    sources: Sequence[Source],
    batch_size: int,
    workers: int,
    known: frozenset[int] | None,
) -> Iterator[list[Decoded]]:
    """Batches in order; see `ahead`."""
    return ahead(lambda source: load(source, specs, known), sources, batch_size, workers)


def ahead(
    decode: Callable[[Item], Decoded], items: Sequence[Item], batch_size: int, workers: int
) -> Iterator[list[Decoded]]:
    """Batches in order; the next ones are decoded while the caller works on the present one, and
    never more than three are in memory."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[list[Future[Decoded]]] = []
        try:
            for start in range(0, len(items), batch_size):
                part = items[start : start + batch_size]
                waiting.append([pool.submit(decode, item) for item in part])
                if len(waiting) == 3:
                    yield [future.result() for future in waiting.pop(0)]
            while waiting:
                yield [future.result() for future in waiting.pop(0)]
        finally:
            pool.shutdown(cancel_futures=True)


def answered_batches(
    engine: Engine,
    sources: Sequence[Source],
    batch_size: int,
    workers: int,
    known: frozenset[int] | None = None,
) -> Iterator[tuple[list[Decoded], np.ndarray]]:
    """Batches in order, each with the probabilities (N, 18) of its N pictures without an error.

    An engine with several lanes is given so many batches at once, each decoded by the thread that
    waits for its answers; one with a single lane, batches that `workers` threads have decoded.
    """
    if engine.lanes == 1:
        for batch in decoded_batches(engine.specs, sources, batch_size, workers, known):
            yield batch, _predict_good(engine, batch)
        return

    def work(part: Sequence[Source]) -> tuple[list[Decoded], np.ndarray]:
        batch = [load(source, engine.specs, known) for source in part]
        return batch, _predict_good(engine, batch)

    with ThreadPoolExecutor(engine.lanes) as pool:
        waiting: list[Future[tuple[list[Decoded], np.ndarray]]] = []
        try:
            for start in range(0, len(sources), batch_size):
                waiting.append(pool.submit(work, sources[start : start + batch_size]))
                if len(waiting) > 2 * engine.lanes:  # a slow batch leaves no lane without work
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            pool.shutdown(cancel_futures=True)


def load(
    source: Source, specs: Sequence[PreprocessSpec | None], known: frozenset[int] | None
) -> Decoded:
    """One picture for an engine of these specs; `known`: fingerprints that count as seen."""
    try:
        content = read_bytes(source.path)
        pixels = decode_for(content, source.path, specs)
    except PictureError as error:
        return Decoded(source, (), False, str(error))
    person = fingerprint(unicodedata.normalize("NFC", source.path.parent.name))
    seen = bool(known and (person in known or fingerprint(content_digest(content)) in known))
    return Decoded(source, pixels, seen)


def _predict_good(engine: Engine, batch: Sequence[Decoded]) -> np.ndarray:
    good = [picture for picture in batch if not picture.error]
    return predict(engine, good) if good else np.empty((0, MULTI.num_classes), dtype=np.float32)


def decode_for(
    content: bytes, name: str | Path, specs: Sequence[PreprocessSpec | None]
) -> tuple[np.ndarray, ...]:
    """A picture file's content → what each input of an engine is fed.

    Raises:
        PictureError: see `maskcls.images.decode`.
    """
    if all(spec is None for spec in specs):
        return (decode_pixels(content, name),) * len(specs)
    return prepare(decode(content, name), specs)


def prepare(image: Image.Image, specs: Sequence[PreprocessSpec | None]) -> tuple[np.ndarray, ...]:
    """Upright RGB picture → what each input of an engine is fed."""
    # The same spec twice, as of two branches trained alike, is resized once.
    resized = {
        spec: np.asarray(image) if spec is None else spec.resize(image)
        for spec in dict.fromkeys(specs)
    }
    return tuple(resized[spec] for spec in specs)


def predict(engine: Engine, pictures: Sequence[Decoded]) -> np.ndarray:
    """Decoded pictures → probabilities of the 18 classes, float32 (N, 18)."""
    columns = [
        [picture.pixels[index] for picture in pictures] for index in range(len(engine.specs))
    ]
    return engine.predict(
        [
            column if spec is None else np.stack(column)
            for spec, column in zip(engine.specs, columns, strict=True)
        ]
    )


def _rows(predicted: np.ndarray, probabilities: bool) -> Iterable[dict[str, object]]:
    """Probabilities (N, 18) → a row per picture, without its name."""
    marginals = MULTI.marginals(predicted) if probabilities else {}
    for index, label in enumerate(predicted.argmax(axis=1)):
        row: dict[str, object] = {"ans": int(label)}
        for name, values in marginals.items():
            for value, probability in zip(ATTRIBUTES[name], values[index], strict=True):
                row[probability_column(name, value)] = round(float(probability), 6)
        yield row


def _write(out: Path, columns: Sequence[str], parts: Parts, escape_formulas: bool) -> None:
    with replacing(out) as temporary:
        if out.suffix.lower() == ".parquet":
            _write_parquet(temporary, columns, parts, _import_pyarrow(out))
            return
        # surrogateescape: a file name that is no UTF-8 is written as it lies on the disk.
        with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = ([str(row.get(name, "")) for name in columns] for row in parts.rows())
            if escape_formulas:
                rows = (
                    [f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell for cell in cells]
                    for cells in rows
                )
            write_rows(file, itertools.chain([columns], rows))


def _write_parquet(path: Path, columns: Sequence[str], parts: Parts, pyarrow: Any) -> None:
    kinds = {"ImageID": pyarrow.string(), "ans": pyarrow.int64(), "error": pyarrow.string()}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in columns])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for part in parts:
            arrays = {name: [row.get(name) for row in part] for name in columns}
            writer.write_table(pyarrow.table(arrays, schema=schema))


def _import_pyarrow(out: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", f"{out}: Parquet") from None
    return pyarrow
