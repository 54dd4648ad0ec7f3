"""What is in the documentation without being written there: the command reference, from the parsers
themselves, and a page of the Python API for each module or package, from its docstrings.

MkDocs calls the functions whose names begin with `on_` (`hooks` in mkdocs.yml).
"""

from __future__ import annotations

import argparse
import ast
import html
import importlib
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this clone, installed or not

COMMANDS = "reference/commands.md"
PYTHON = "reference/python"


def on_config(config: MkDocsConfig) -> None:
    """The navigation ends with the pages of the Python API."""
    [reference] = [section["Reference"] for section in config.nav or () if "Reference" in section]
    reference.append({"Python": [f"{PYTHON}/{page}.md" for page in ("index", *units())]})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """The generated pages join the written ones."""
    pages = {COMMANDS: commands_page(), f"{PYTHON}/index.md": python_index()}
    pages |= {f"{PYTHON}/{unit}.md": python_page(unit) for unit in units()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))


# --- commands ------------------------------------------------------------------------------------


def commands_page() -> str:
    """All commands of pyproject.toml with all that their `--help` says."""
    for name in [name for name in os.environ if name.startswith("SM_")]:
        del os.environ[name]  # --help shows what they are on this machine
    os.environ["COLUMNS"] = "90"  # of the usage lines
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    parts = [
        "# Commands",
        "Made from the programs themselves: this is what `--help` says. Exit codes are in "
        "[Troubleshooting](../troubleshooting.md#exit-codes).",
    ]
    shims = shims_by_module()
    for name, entry in sorted(scripts.items()):
        module = entry.partition(":")[0]
        own_name, sys.argv[0] = sys.argv[0], name
        try:
            parser = importlib.import_module(module).build_parser()
        finally:
            sys.argv[0] = own_name
        shim = f"In a clone: `python {shims[module]}`." if module in shims else ""
        parts += [f"## {name}", shim, *describe(parser, "###")]
    return "\n\n".join(part for part in parts if part) + "\n"


def shims_by_module() -> dict[str, str]:
    """`maskcls.commands.train` → `cli/train.py`."""
    found = {}
    for path in [*ROOT.glob("cli/*.py"), *ROOT.glob("export/*.py")]:
        called = re.search(r"^from (maskcls\.commands\.\w+) import main$", path.read_text(), re.M)
        if called:
            found[called[1]] = path.relative_to(ROOT).as_posix()
    return found


def describe(parser: argparse.ArgumentParser, level: str) -> Iterator[str]:
    """Description, usage, options, examples; then the same of its subcommands."""
    yield escape(" ".join((parser.description or "").split()))
    yield f"```text\n{parser.format_usage().strip()}\n```"
    # argparse has no public way to its options but the text of --help.
    formatter = parser._get_formatter()
    rows = [
        f"| `{formatter._format_action_invocation(action)}` | "
        f"{escape(formatter._expand_help(action)).replace(', which is not set', '')} |"
        for action in parser._actions
        if action.help and not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    ]
    if rows:
        yield "\n".join(["| option | what it is |", "|---|---|", *rows])
    if parser.epilog:
        yield f"```text\n{parser.epilog.strip()}\n```"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield f"{level} {sub.prog}"
                yield from describe(sub, level + "#")


def escape(text: str) -> str:
    """Plain text as Markdown in a cell of a table."""
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", html.escape(text, quote=False))


# --- the Python API ------------------------------------------------------------------------------


def units() -> list[str]:
    """The modules and packages right below `maskcls`; what `commands` does, is told above."""
    paths = (ROOT / "maskcls").iterdir()
    names = {
        path.stem for path in paths if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    return sorted(name for name in names if not name.startswith("_") and name != "commands")


def python_index() -> str:
    """A table of the units, each with what it is in a sentence."""
    lines = [
        "# Python",
        "",
        "`import maskcls` loads nothing else: import the module you need. Examples to run stand in "
        "[From Python](../../guides/python.md). Names without a leading underscore are described "
        "here; shapes are written as (N, C), and what a function raises is a class of "
        "[maskcls.errors](errors.md).",
        "",
        "| module | what it is |",
        "|---|---|",
    ]
    for unit in units():
        lines.append(f"| [maskcls.{unit}]({unit}.md) | {summary(unit)} |")
    return "\n".join(lines) + "\n"


def summary(unit: str) -> str:
    """The first sentence of a unit's docstring."""
    text = ast.get_docstring(ast.parse(source(unit).read_text("utf-8"))) or ""
    first = re.split(r"(?<=\.)\s", " ".join(text.partition("\n\n")[0].split()))[0]
    return first.replace("|", "\\|")  # Markdown already


def source(unit: str) -> Path:
    module = ROOT / "maskcls" / f"{unit}.py"
    return module if module.is_file() else ROOT / "maskcls" / unit / "__init__.py"


def python_page(unit: str) -> str:
    """A module, or a package with its modules one after the other."""
    page = f"# maskcls.{unit}\n\n::: maskcls.{unit}\n"
    inside = sorted((ROOT / "maskcls" / unit).glob("[!_]*.py"))
    if not inside:
        return page
    # Its own names are those of its modules, which follow.
    page += "    options:\n      members: false\n"
    return page + "".join(f"\n::: maskcls.{unit}.{path.stem}\n" for path in inside)
