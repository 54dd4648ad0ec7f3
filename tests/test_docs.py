"""docs/: it builds without a warning and needs no network, and its pages follow the code. (Their
commands and examples run in tests/test_readme.py.)"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "srcset"}
"""Tag → its attribute that a browser fetches without being asked."""
NOT_RUN = ("python benchmarks/", "triton_client.py", "--engine ray", "--merge labels ")
"""Needs a quiet machine, a server or a cluster, or reads what those leave."""
FOREIGN_MESSAGES = {"operator torchvision::nms does not exist"}


# --- the site ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make docs` makes, links and anchors checked."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("needs the extra docs: pip install 'maskcls[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


class Loads(HTMLParser):
    """What a page loads from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(LOADED.get(tag, ""))
        if address and re.match(r"(\w+:)?//", address):
            self.addresses.append(address)


def loaded_by(page: str) -> list[str]:
    parser = Loads()
    parser.feed(page)
    return parser.addresses


@pytest.mark.slow
@pytest.mark.xdist_group("docs")
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert site / "index.html" in pages
    for page in pages:
        assert not loaded_by(page.read_text("utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", sheet.read_text("utf-8"))


def test_what_would_be_loaded_is_seen() -> None:
    assert loaded_by('<link rel="preconnect" href="https://fonts.example">')
    assert loaded_by('<script src="//cdn.example/x.js"></script>')
    assert not loaded_by('<a href="https://pytorch-ignite.ai">x</a><img src="assets/a.png">')


@pytest.mark.slow
@pytest.mark.xdist_group("docs")
def test_every_option_of_every_command_is_in_the_reference(site: Path) -> None:
    page = (site / "reference/commands.html").read_text("utf-8")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert "maskcls-train" in scripts
    for name, entry in scripts.items():
        assert f'id="{name}"' in page
        parser = importlib.import_module(entry.partition(":")[0]).build_parser()
        for action in parser._actions:
            for option in set(action.option_strings) - {"-h", "--help"}:
                assert re.search(rf"<code>{option}[ <]", page), f"{name} {option}"
    assert "maskcls-data check" in page
    assert str(ROOT) not in page


@pytest.mark.slow
@pytest.mark.xdist_group("docs")
def test_every_module_has_its_page(site: Path) -> None:
    for path in sorted((ROOT / "maskcls").rglob("*.py")):
        names = path.relative_to(ROOT).with_suffix("").parts
        if "commands" in names or any(name.startswith("_") for name in names):
            continue
        page = site / "reference" / "python" / f"{names[1]}.html"
        assert f'id="{".".join(names)}"' in page.read_text("utf-8"), path


# --- the written pages ---------------------------------------------------------------------------


def messages() -> list[str]:
    """Every text in the package's code, with … where it differs, and every line of the page's."""
    found = []
    for path in (ROOT / "maskcls").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                )
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "unknown":
                if isinstance(node.args[0], ast.Constant):
                    found.append(f"unknown {node.args[0].value} …; known: …")
    for path in (ROOT / "maskcls" / "web" / "static").glob("*.js"):
        found += path.read_text("utf-8").splitlines()
    return found


def is_said(message: str, texts: list[str]) -> bool:
    """Whether one of the texts has the message's words, in their order."""
    pattern = re.compile(
        ".*".join(re.escape(part.strip()) for part in message.split("…")), re.DOTALL
    )
    return any(pattern.search(text) for text in texts)


def quoted_messages() -> Iterator[str]:
    page = (DOCS / "troubleshooting.md").read_text("utf-8")
    yield from re.findall(r"^### `(.+)`$", page, flags=re.MULTILINE)


def test_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    texts = messages()
    quoted = set(quoted_messages())
    assert len(quoted) > 20
    assert not [message for message in quoted - FOREIGN_MESSAGES if not is_said(message, texts)]
    assert FOREIGN_MESSAGES <= quoted


def test_a_message_that_nobody_says_is_seen() -> None:
    assert not is_said("…: the moon is in the way", messages())
    assert not is_said("names that … parse", ["what does not parse names that"])


def test_commands_stand_where_they_are_run() -> None:
    for path in DOCS.rglob("*.md"):
        for language, block in re.findall(
            r"^```(\w*).*?\n(.*?)^```$", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL
        ):
            if language != "bash":
                for command in re.findall(
                    r"^(?:\w+=\S+ )*(?:python|maskcls-\w+) .+", block, re.MULTILINE
                ):
                    assert any(sign in command for sign in NOT_RUN), f"{path}: {command}"


def test_pictures_are_small_and_used() -> None:
    text = "\n".join(path.read_text("utf-8") for path in DOCS.rglob("*.md"))
    pictures = [path for path in DOCS.rglob("*") if path.suffix in (".png", ".jpg", ".svg")]
    assert pictures
    for path in pictures:
        assert path.stat().st_size < 100_000, path
        assert path.name in text, path
        with Image.open(path) as image:
            image.load()


def test_korean_names_are_those_of_the_original() -> None:
    original = (DOCS / "reference" / "original.md").read_text("utf-8")
    page = (DOCS / "ko.md").read_text("utf-8")
    rows = re.findall(r"^\| `\w+\.py` \|.*$", page, flags=re.MULTILINE)
    assert len(rows) > 5
    listed = {
        name: re.findall(r"`([\w.]+)`", row)[-1]
        for row in re.findall(r"^\| `\w+\.py` \|.*$", original, flags=re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    for row in rows:
        module = re.findall(r"`([\w.]+)`", row)[-1]
        for name in re.findall(r"`(\w+)`", row):
            assert listed[name] == module, name
