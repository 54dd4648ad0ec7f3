"""Parts of a page that stands alone: no script, no font and no picture from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from maskcls.files import write_atomic

STYLE = """\
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 16px; color: #222; background: #fff;
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 8px 0; }
h2 { font-size: 1.25rem; margin: 40px 0 4px; padding-top: 12px; border-top: 1px solid #ccc; }
h3 { font-size: 1rem; margin: 20px 0 4px; }
p { max-width: 75ch; margin: 6px 0; }
.facts { margin: 8px 0; }
.facts dt { font-weight: 600; float: left; margin-right: 8px; }
.facts dd { margin: 0; }
.warning { border-left: 4px solid #d55e00; background: #fff4ec; padding: 8px 12px; }
.out { color: #595959; font-style: italic; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 12px 0; }
.card { border: 1px solid #ccc; border-radius: 6px; padding: 8px 14px; }
.card b { display: block; font-size: 1.7rem; line-height: 1.2; }
.scroll { overflow-x: auto; max-width: 100%; margin: 10px 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding: 4px 0; }
th, td { padding: 3px 10px; text-align: left; border-bottom: 1px solid #e5e5e5; }
thead th { border-bottom: 2px solid #999; vertical-align: bottom; }
th { font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 400; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.bar { background: linear-gradient(90deg, #b9d7ea var(--v), transparent var(--v)) no-repeat; }
tr.few > * { color: #595959; font-style: italic; }
table.confusion td { text-align: right; min-width: 38px; padding: 3px 6px; }
table.confusion td.right { outline: 2px solid #222; outline-offset: -2px;
  box-shadow: inset 0 0 0 3px #fff; }
table.config td { white-space: normal; overflow-wrap: anywhere; }
.charts { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
figure { margin: 8px 0; max-width: 440px; }
figcaption { font-size: .9rem; }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.mistakes { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); }
.mistakes figure { border: 1px solid #ccc; border-radius: 6px; padding: 8px; max-width: none; }
.pair { display: flex; gap: 6px; }
.pair img { flex: 0 1 auto; min-width: 0; height: auto; object-fit: contain; }
.findings { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 360px), 1fr)); }
.findings > figure { border: 1px solid #ccc; border-radius: 6px; padding: 8px; max-width: none; }
.faces { display: flex; flex-wrap: wrap; gap: 6px; margin-bottom: 6px; }
.faces figure { margin: 0; width: 84px; }
.faces img { display: block; width: 100%; height: auto; }
.faces figcaption { font-size: .75rem; line-height: 1.3; }
details { margin: 10px 0; }
summary { cursor: pointer; font-weight: 600; padding: 4px 0; }
@media print { .scroll { overflow: visible; } }
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content-Security-Policy: a browser fetches nothing and runs nothing, whatever is on the page."""


def page(title: str, body: Iterable[str]) -> str:
    """The whole document."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def write_page(path: Path, text: str) -> None:
    """The document as a file, whole or not at all.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    # A file name that is no UTF-8 is shown with escapes.
    write_atomic(path, text.encode("utf-8", errors="backslashreplace"))


def paragraph(text: str, kind: str = "") -> str:
    """`kind`: a class of the style sheet."""
    return f"<p{_class(kind)}>{escape(text)}</p>"


def facts(lines: Mapping[str, str]) -> str:
    """What the page is about, under its title: name → value."""
    items = "".join(f"<dt>{escape(k)}:</dt><dd>{escape(v)}</dd>" for k, v in lines.items())
    return f'<dl class="facts">{items}</dl>'


def format_time(moment: datetime) -> str:
    """When a page was made."""
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}"


def privacy(pictures: bool, command: str) -> str:
    """What to bear in mind about a page that names people's folders, and shows `pictures` of them
    unless `command` was told otherwise."""
    if not pictures:
        return paragraph(
            "Privacy: this file holds the names of people's folders, which may say who they are.",
            "warning",
        )
    return paragraph(
        "Privacy: this file holds pictures of people and the names of their folders. Treat it like "
        "the pictures themselves, and do not pass it on without the right to. "
        f"{command} with --no-pictures makes one without pictures.",
        "warning",
    )


def table(
    caption: str,
    header: Sequence[str],
    rows: Iterable[str],
    kind: str = "",
    *,
    left: int = 1,
) -> str:
    """A table that scrolls within itself where the page is narrower.

    `rows`: from `row`. `left`: how many columns hold text; the others hold numbers.
    """
    cells = "".join(
        f'<th scope="col"{_class("" if number < left else "n")}>{escape(name)}</th>'
        for number, name in enumerate(header)
    )
    # tabindex: what scrolls can be reached with the keyboard.
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table{_class(kind)}><caption>{escape(caption)}</caption>"
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def row(names: Sequence[str], cells: Sequence[str], kind: str = "") -> str:
    """A row of a table: `names` are text, `cells` come from `number`, `share` or the like."""
    heads = "".join(f'<th scope="row">{escape(name)}</th>' for name in names)
    return f"<tr{_class(kind)}>{heads}{''.join(cells)}</tr>"


def number(text: object) -> str:
    """A cell with a number in it."""
    return f'<td class="n">{escape(str(text))}</td>'


def share(value: float) -> str:
    """A cell with a number from 0 to 1, and a bar of that length behind it."""
    return f'<td class="n bar" style="--v:{value:.1%}">{value:.3f}</td>'


def chart(caption: str, svg: str) -> str:
    """A chart with its caption."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def picture(pixels: np.ndarray, alt: str) -> str:
    """uint8 (H, W, 3) as a JPEG in the page, shown at twice its size where there is room."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=90)
    data = base64.b64encode(content.getvalue()).decode("ascii")
    height, width = pixels.shape[:2]
    return (
        f'<img src="data:image/jpeg;base64,{data}" alt="{escape(alt)}"'
        f' width="{2 * width}" height="{2 * height}">'
    )


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
