"""`audit.html`: the labels that an audit contradicts, with their pictures, on one page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskcls.data.fixes import PICTURE_FIELDS
from maskcls.errors import PictureError
from maskcls.evaluation.audit import Audit, Finding
from maskcls.evaluation.page import (
    facts,
    format_time,
    number,
    page,
    paragraph,
    picture,
    privacy,
    row,
    table,
    write_page,
)
from maskcls.images import read_image
from maskcls.labels import ATTRIBUTES

THUMBNAIL = (120, 120)  # pixels, width and height at most; the page shows them somewhat smaller

Thumbnails = Mapping[Path, np.ndarray]
"""Pictures that could be read: uint8 (H, W, 3)."""


def write_gallery(
    audit: Audit, shown: Mapping[str, Sequence[Finding]], path: Path, *, pictures: bool = True
) -> None:
    """The page as a file, whole or not at all. `shown`: attribute → the findings on it.
    `pictures`: False shows none.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    wanted = (each for findings in shown.values() for one in findings for each, _ in one.pictures)
    thumbnails = read_thumbnails(list(dict.fromkeys(wanted))) if pictures else None
    write_page(path, render(audit, shown, thumbnails))


def read_thumbnails(paths: Sequence[Path]) -> dict[Path, np.ndarray]:
    """Small pictures; those that cannot be read are left out."""
    found = {}
    for path in tqdm(paths, "pictures", unit="img", disable=None):
        try:
            image = read_image(path)
        except PictureError:
            continue
        image.thumbnail(THUMBNAIL, Image.Resampling.BILINEAR)
        found[path] = np.asarray(image)
    return found


def render(
    audit: Audit,
    shown: Mapping[str, Sequence[Finding]],
    thumbnails: Thumbnails | None,
    made: datetime | None = None,
) -> str:
    """The page as text; without `thumbnails` it has no pictures."""
    parts = [_head(audit, thumbnails is not None, made or datetime.now(UTC)), ["<main>"]]
    parts += [
        _section(name, ranking, shown.get(name, ()), audit.cautions[name], thumbnails)
        for name, ranking in audit.rankings.items()
    ]
    parts.append(["</main>"])
    return page("Label audit", (line for part in parts for line in part))


def _head(audit: Audit, pictures: bool, made: datetime) -> Iterator[str]:
    yield "<header><h1>Label audit</h1>"
    yield facts(
        {
            "Made": format_time(made),
            "Predictions": ", ".join(map(str, audit.files)),
            "Data": ", ".join(map(str, audit.data_dirs)),
        }
    )
    yield privacy(pictures, "maskcls-data audit")
    yield paragraph(
        "Each network that answered had not seen the person. A label is contradicted where the "
        "answer is another class, and as sure as it usually is for those who are labelled so. "
        "That is a reason to look, not a proof: networks are wrong about faces that are rare in "
        "the data, and more often so about some groups of people than about others."
    )
    yield paragraph(
        "Doubt, from 0 to 1, is the part of the probability that does not support the label; the "
        "most doubtful come first. Below a picture stands the probability of the label on it "
        "alone. The number in the text is of all pictures together, as sure as the labels bear "
        "out. Corrections for what is shown are in fixes.csv: look, and take out the rows of "
        "labels that are right."
    )
    yield "</header>"


def _section(
    attribute: str,
    ranking: Sequence[Finding],
    shown: Sequence[Finding],
    cautions: Sequence[str],
    thumbnails: Thumbnails | None,
) -> Iterator[str]:
    yield f"<h2>{escape(attribute.capitalize())}</h2>"
    of_picture = attribute in PICTURE_FIELDS
    contradicted = [finding for finding in ranking if finding.contradicted]
    yield paragraph(
        f"{len(contradicted)} of {len(ranking)} labels of {'pictures' if of_picture else 'people'} "
        f"are contradicted. {len(shown)} of them follow; ranking.csv has all."
    )
    for caution in cautions:
        yield paragraph(f"Caution: {caution}.")
    if attribute == "age":
        yield paragraph(
            "An age that lies a few years from another group agrees with that group in part: 29 "
            "and 30 look alike. The new age in fixes.csv is a guess."
        )
    if contradicted:
        names = ATTRIBUTES[attribute]
        pairs = Counter((finding.label, finding.answer) for finding in contradicted)
        rows = [
            row([names[label], names[answer]], [number(count)])
            for (label, answer), count in sorted(pairs.items())
        ]
        yield table(
            f"Contradicted: {attribute}", ["labelled", "answered", "how many"], rows, left=2
        )
    cards = [_card(group, thumbnails) for group in _groups(shown)]
    if cards:
        yield f'<div class="findings">{"".join(cards)}</div>'


def _groups(shown: Sequence[Finding]) -> list[list[Finding]]:
    """A card each: the two halves of a swap are on one."""
    groups: list[list[Finding]] = []
    halves: dict[str, list[Finding]] = {}  # the card that waits for this target
    for finding in shown:
        group = halves.pop(finding.target, None) if finding.swapped_with else None
        if group is not None:
            group.append(finding)
            continue
        groups.append([finding])
        if finding.swapped_with:
            halves[finding.swapped_with] = groups[-1]
    return groups


def _card(group: Sequence[Finding], thumbnails: Thumbnails | None) -> str:
    faces = ""
    if thumbnails is not None:
        figures = "".join(
            _face(path, probability, finding, thumbnails)
            for finding in group
            for path, probability in finding.pictures
        )
        faces = f'<div class="faces">{figures}</div>'
    lines = [
        f"{escape(finding.label_name)} → <strong>{escape(finding.answer_name)}</strong>, "
        f"doubt {finding.doubt:.3f}<br>{escape(finding.target)}<br>{escape(finding.why)}"
        for finding in group
    ]
    return f"<figure>{faces}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def _face(path: Path, probability: float, finding: Finding, thumbnails: Thumbnails) -> str:
    if path in thumbnails:
        image = picture(thumbnails[path], f"face, labelled {finding.label_name}")
    else:
        image = '<span class="out">cannot be read</span>'
    return f"<figure>{image}<figcaption>{escape(path.stem)} {probability:.2f}</figcaption></figure>"
