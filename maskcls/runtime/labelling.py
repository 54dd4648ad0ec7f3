"""From a list of pictures to a file of labels."""

from __future__ import annotations

import hashlib
import itertools
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskcls.errors import DataError, PictureError
from maskcls.images import content_digest, decode, decode_pixels, read_bytes
from maskcls.labels import ATTRIBUTES, MULTI, probability_column
from maskcls.preprocessing import PreprocessSpec
from maskcls.provenance import Provenance, ShardRecord, fingerprint, names_all, write_provenance
from maskcls.runtime.engines import Engine
from maskcls.runtime.packed import files_read, import_pyarrow, pictures_digest, places_digest
from maskcls.runtime.parts import Parts, Row, only_job
from maskcls.runtime.shards import Shard
from maskcls.runtime.sources import Pictures, Source
from maskcls.runtime.tables import Item, parts_of, write_table

PART = 512
"""Pictures per part, at least: what a killed job loses at most, and what is in memory of its rows.
"""


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
    sources: Pictures,
    out: Path,
    *,
    batch_size: int = 32,
    workers: int = 2,
    probabilities: bool = False,
    strict: bool = False,
    resume: bool = False,
    escape_formulas: bool = False,
    shard: Shard | None = None,
) -> LabellingResult:
    """Labels pictures with the 18 classes and writes `ImageID,ans` in their order.

    `out`: `.csv`, or `.parquet` (extra `parquet`). A picture that cannot be read has an empty `ans`
    and its reason in a column `error`, which a file without errors does not have. With
    `probabilities` there is a column per attribute and class. The file appears when it is complete;
    beside it lies its provenance. Until then finished parts lie in `output.csv.parts/`; with
    `resume` an interrupted job goes on after them and ends with the same file.

    `escape_formulas`: in a CSV, text that a spreadsheet would run as a formula is preceded by `'`.
    `shard`: labels this part of the pictures only; `maskcls.runtime.merging.merge` joins the parts.

    Raises:
        DataError: no picture was given, or none could be read (of a shard all may be unreadable);
            or an unfinished job of this output is in the way.
        PictureError: with `strict`, a picture that cannot be read.
        MissingExtraError: Parquet without pyarrow.
    """
    if not sources:
        raise DataError("no pictures to label")
    if out.exists() and any(out.samefile(read) for read in files_read(sources)):
        raise DataError(f"{out}: the pictures come from it; name another file for the labels")
    if out.suffix.lower() == ".parquet":
        import_pyarrow(out)  # or fail before the work, not after it
    record = None
    if shard is not None:
        digest = pictures_digest(sources)
        record = ShardRecord(shard.number, shard.count, batch_size, escape_formulas, digest)
        sources = sources[shard.bounds(len(sources), batch_size)]
    with only_job(out):
        parts = Parts(out, _job_key(engine, sources, batch_size, probabilities), resume=resume)
        if strict:  # the job that is gone on with may not have been
            refuse_errors(itertools.chain.from_iterable(parts), parts.folder)
        try:
            _label_rest(engine, sources, parts, batch_size, workers, probabilities, strict)
        finally:
            if parts.done == 0 and len(sources):  # nothing to go on from
                parts.remove()
        made, errors = summed_up(engine, itertools.chain.from_iterable(parts), record)
        if record is None and made.errors == made.pictures:
            parts.remove()
            raise nothing_to_read(errors)
        columns = label_columns(probabilities) + (["error"] if errors else [])
        write_table(out, columns, parts, escape_formulas=escape_formulas)
        write_provenance(out, made)
        parts.remove()
    return LabellingResult(out, made.pictures, tuple(errors), made.seen_in_training)


def summed_up(
    engine: Engine, rows: Iterable[Row], record: ShardRecord | None
) -> tuple[Provenance, list[str]]:
    """What finished rows come to, and the messages of those pictures that could not be read."""
    pictures = seen = 0
    errors: list[str] = []
    for row in rows:
        pictures += 1
        seen += row["seen"]
        if "error" in row:
            errors.append(row["error"])
    known = seen if seen or names_all(engine.trained_on) else None
    return Provenance(pictures, len(errors), known, engine.models, record), errors


def refuse_errors(rows: Iterable[Row], where: Path) -> None:
    """`where`: what holds these rows, of an earlier run of the job.

    Raises:
        PictureError: finished rows have a picture that could not be read.
    """
    for row in rows:
        if "error" in row:
            raise PictureError(
                f"{row['error']} (when {where} was written; delete it to label them anew)"
            )


def nothing_to_read(errors: Sequence[str]) -> DataError:
    """Of a job in which every picture has an error."""
    return DataError(f"none of {len(errors)} pictures can be read, first: {errors[0]}")


def part_size(batch_size: int) -> int:
    """Pictures per part: whole batches."""
    return batch_size * max(1, PART // batch_size)


def label_columns(probabilities: bool) -> list[str]:
    """Of the output, without `error`."""
    columns = ["ImageID", "ans"]
    if probabilities:
        columns += [
            probability_column(name, value)
            for name, values in ATTRIBUTES.items()
            for value in values
        ]
    return columns


def _label_rest(
    engine: Engine,
    sources: Pictures,
    parts: Parts,
    batch_size: int,
    workers: int,
    probabilities: bool,
    strict: bool,
) -> None:
    """The parts that are not there yet. They hold whole batches, so a job that goes on computes
    the same batches as one that was never interrupted."""
    size = part_size(batch_size)
    start = min(parts.done * size, len(sources))
    rows: list[Row] = []
    with tqdm(total=len(sources), initial=start, desc="labelling", unit="img", disable=None) as bar:
        for batch in labelled_batches(
            engine, sources[start:], batch_size, workers, probabilities, strict
        ):
            rows += batch
            if len(rows) >= size:
                parts.write(rows)
                rows = []
            bar.update(len(batch))
    if rows:
        parts.write(rows)


def labelled_batches(
    engine: Engine,
    sources: Pictures,
    batch_size: int,
    workers: int,
    probabilities: bool,
    strict: bool = False,
) -> Iterator[list[Row]]:
    """Batches of rows as they stand in the output, with a column `seen` besides.

    Raises:
        PictureError: with `strict`, a picture that cannot be read.
    """
    for batch, predicted in answered_batches(
        engine, sources, batch_size, workers, engine.trained_on
    ):
        answers = iter(_rows(predicted, probabilities))
        rows: list[Row] = []
        for picture in batch:
            if picture.error and strict:
                raise PictureError(picture.error)
            row = {"error": picture.error} if picture.error else next(answers)
            rows.append({"ImageID": picture.source.image_id, "seen": int(picture.seen), **row})
        yield rows


def _job_key(engine: Engine, sources: Pictures, batch_size: int, probabilities: bool) -> str:
    """What must be the same for a job to go on."""
    digest = hashlib.sha256()
    options = [batch_size, probabilities, *(model.sha256 for model in engine.models)]
    digest.update(json.dumps(options).encode())
    digest.update(pictures_digest(sources).encode())
    digest.update(places_digest(sources).encode())
    return digest.hexdigest()


def decoded_batches(
    specs: Sequence[PreprocessSpec | None],
    sources: Iterable[Source],
    batch_size: int,
    workers: int,
    known: frozenset[int] | None,
) -> Iterator[list[Decoded]]:
    """Batches in order; see `ahead`."""
    return ahead(lambda source: load(source, specs, known), sources, batch_size, workers)


def ahead(
    decode: Callable[[Item], Decoded], items: Iterable[Item], batch_size: int, workers: int
) -> Iterator[list[Decoded]]:
    """Batches in order; the next ones are decoded while the caller works on the present one, and
    never more than three are in memory."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[list[Future[Decoded]]] = []
        try:
            for part in parts_of(items, batch_size):
                waiting.append([pool.submit(decode, item) for item in part])
                if len(waiting) == 3:
                    yield [future.result() for future in waiting.pop(0)]
            while waiting:
                yield [future.result() for future in waiting.pop(0)]
        finally:
            pool.shutdown(cancel_futures=True)


def answered_batches(
    engine: Engine,
    sources: Iterable[Source],
    batch_size: int,
    workers: int,
    known: frozenset[int] | None = None,
) -> Iterator[tuple[list[Decoded], np.ndarray]]:
    """Batches in order, without their pixels, each with the probabilities (N, 18) of its N pictures
    without an error.

    An engine with several lanes is given so many batches at once, each decoded by the thread that
    waits for its answers; one with a single lane, batches that `workers` threads have decoded.
    """
    if engine.lanes == 1:
        for batch in decoded_batches(engine.specs, sources, batch_size, workers, known):
            yield _answered(engine, batch)
        return

    def work(part: Sequence[Source]) -> tuple[list[Decoded], np.ndarray]:
        batch = [load(source, engine.specs, known) for source in part]
        return _answered(engine, batch)

    with ThreadPoolExecutor(engine.lanes) as pool:
        waiting: list[Future[tuple[list[Decoded], np.ndarray]]] = []
        try:
            for part in parts_of(sources, batch_size):
                waiting.append(pool.submit(work, part))
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
        content = _content(source)
        pixels = decode_for(content, source.path, specs)
    except PictureError as error:
        return Decoded(source, (), False, str(error))
    person = fingerprint(unicodedata.normalize("NFC", source.path.parent.name))
    seen = bool(known and (person in known or fingerprint(content_digest(content)) in known))
    return Decoded(source, pixels, seen)


def _content(source: Source) -> bytes:
    """
    Raises:
        PictureError: there is none.
    """
    if source.error:
        raise PictureError(source.error)
    if source.content is None:
        return read_bytes(source.path)
    if not source.content:
        raise PictureError(f"{source.path}: the picture is empty")
    return source.content


def _answered(engine: Engine, batch: Sequence[Decoded]) -> tuple[list[Decoded], np.ndarray]:
    good = [picture for picture in batch if not picture.error]
    empty = np.empty((0, MULTI.num_classes), dtype=np.float32)
    answers = predict(engine, good) if good else empty
    # Answered batches wait for their turn, and pictures of any size are large.
    return [replace(picture, pixels=()) for picture in batch], answers


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
