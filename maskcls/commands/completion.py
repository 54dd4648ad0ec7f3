"""Shell completion for all commands.

python cli/completion.py bash > ~/.maskcls.bash
"""

from __future__ import annotations

import argparse
import pkgutil
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import maskcls.commands
from maskcls.commands._run import guarded

SHELLS = ("bash", "zsh")

EPILOG = """\
The script completes the options of maskcls-train, maskcls-infer and the others, the values of those
that have a list of them, files and folders. Make it anew after an update.

bash, once, and then this line in ~/.bashrc:
  maskcls-completion bash > ~/.maskcls.bash
  source ~/.maskcls.bash

zsh, once, and then this line in ~/.zshrc, below compinit:
  maskcls-completion zsh > ~/.maskcls.zsh
  eval "$(<~/.maskcls.zsh)"
"""


def build_parser() -> argparse.ArgumentParser:
    """The options of `maskcls-completion`."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Print a script with which a shell completes the commands' options.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell it is for")
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = build_parser().parse_args(argv)

    import shtab

    for parser in command_parsers():
        _complete_values(parser)
        print(shtab.complete(parser, args.shell))
    return 0


def command_parsers() -> Iterator[argparse.ArgumentParser]:
    """Those of the console commands: every module here is one."""
    for module in pkgutil.iter_modules(maskcls.commands.__path__):
        if not module.name.startswith("_"):
            parser: argparse.ArgumentParser
            parser = import_module(f"maskcls.commands.{module.name}").build_parser()
            parser.prog = f"maskcls-{module.name}"
            yield parser


def _complete_values(parser: argparse.ArgumentParser) -> None:
    """Says what the values of options are where the parser does not: names that the option checks
    itself, folders, files. The parser is of no other use afterwards."""
    import shtab

    for action in parser._actions:
        if isinstance(action.choices, dict):  # subcommands
            for command in action.choices.values():
                _complete_values(command)
        elif names := getattr(action, "offered", ()):
            action.choices = names
        elif action.metavar == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.type is Path or str(action.metavar).startswith("FILE"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
