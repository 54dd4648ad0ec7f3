"""`maskcls-completion`: a real shell completes what its script says."""

from __future__ import annotations

import builtins
import os
import pty
import select
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from maskcls.commands.completion import SHELLS, command_parsers, main
from maskcls.config import MODEL_NAMES, PRECISION_NAMES
from maskcls.labels import TASKS

pytest.importorskip("shtab")

ROOT = Path(__file__).resolve().parents[2]
BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="no bash here")

# What readline does on a Tab: look up the function, give it the words, take what it leaves.
ASK = r"""
source "$1"; shift
[[ $(complete -p "$1") =~ -F\ ([^ ]+) ]] || exit 3
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
"${BASH_REMATCH[1]}" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of bash, as the shim prints it."""
    file = tmp_path_factory.mktemp("completion") / "maskcls.bash"
    shim = [sys.executable, str(ROOT / "cli" / "completion.py"), "bash"]
    file.write_bytes(subprocess.run(shim, capture_output=True, check=True).stdout)
    return file


def complete(script: Path, *words: str, cwd: Path | None = None) -> list[str]:
    """What bash offers for the last word."""
    done = subprocess.run(
        [str(BASH), "--norc", "-u", "-c", ASK, "bash", str(script), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_every_command_has_one() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert sorted(parser.prog for parser in command_parsers()) == sorted(scripts)


@needs_bash
def test_options_complete(script: Path) -> None:
    for parser in command_parsers():
        options = {option for action in parser._actions for option in action.option_strings}
        assert {"--help"} <= options
        assert set(complete(script, parser.prog, "-")) == options
    assert complete(script, "maskcls-train", "--mod") == ["--model-dir", "--model"]
    assert complete(script, "maskcls-train", "--no-such") == []
    assert complete(script, "maskcls-export", "--out", "onnx", "--prec") == ["--precision"]


CASES: list[tuple[Sequence[str], Sequence[str]]] = [
    (["maskcls-train", "--task", ""], [*TASKS, "all"]),
    (["maskcls-train", "--task", "mask"], ["mask_gender", "mask"]),
    (["maskcls-train", "--epochs", "3", "--model", ""], MODEL_NAMES),
    (["maskcls-train", "--model", "efficientnet_b3_"], ["efficientnet_b3_init"]),
    (["maskcls-train", "--precision", ""], PRECISION_NAMES),
    (["maskcls-train", "--criterion", "f"], ["focal", "f1"]),
    (["maskcls-train", "--weights", "im"], ["imagenet"]),
    (["maskcls-export", "--precision", ""], ["fp32", "fp16", "int8"]),
    (["maskcls-infer", "--model", "a.onnx", "--provider", "c"], ["cuda", "cpu"]),
    (["maskcls-data", ""], ["check", "audit", "sample"]),
    (["maskcls-data", "audit", "--o"], ["--oof", "--out"]),
    (["maskcls-completion", ""], SHELLS),
]


@needs_bash
@pytest.mark.parametrize(("words", "offered"), CASES, ids=lambda value: " ".join(value))
def test_values_complete(script: Path, words: Sequence[str], offered: Sequence[str]) -> None:
    assert sorted(complete(script, *words)) == sorted(offered)


@needs_bash
def test_files_and_folders_complete(script: Path, tmp_path: Path) -> None:
    for name in ("runs", "사진"):
        (tmp_path / name).mkdir()
    for name in ("run.onnx", "run.csv"):
        (tmp_path / name).touch()
    ask = [("maskcls-train", "--model-dir"), ("maskcls-export", "--out"), ("maskcls-data", "check")]
    for words in ask:
        assert complete(script, *words, "r", cwd=tmp_path) == ["runs"]
        assert complete(script, *words, "사", cwd=tmp_path) == ["사진"]
    for words in [
        ("maskcls-infer", "--model"),
        ("maskcls-evaluate", "--gt"),
        ("maskcls-evaluate",),
    ]:
        found = complete(script, *words, "r", cwd=tmp_path)
        assert sorted(found) == ["run.csv", "run.onnx", "runs"]


@needs_bash
def test_a_tab_in_an_interactive_shell(script: Path, tmp_path: Path) -> None:
    """The same through readline, on a terminal."""
    master, slave = pty.openpty()
    shell = subprocess.Popen(
        [str(BASH), "--norc", "--noprofile", "-i"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(tmp_path), "PS1": "ready> "},
        start_new_session=True,
    )
    os.close(slave)

    def until(text: str) -> str:
        """What the shell says up to it: its echo of the keys, and what a Tab puts in."""
        seen = ""
        last = time.monotonic() + 20
        while text not in seen and time.monotonic() < last:
            if select.select([master], [], [], 0.5)[0]:
                seen += os.read(master, 4096).decode(errors="replace")
        return seen

    try:
        until("ready> ")
        os.write(master, f"source {script}\n".encode())
        until("ready> ")
        os.write(master, b"maskcls-train --task mask_g\t--schedule pl\tEND")
        seen = until("END")
    finally:
        shell.kill()
        shell.wait()
        os.close(master)
    assert "maskcls-train --task mask_gender --schedule plateau END" in seen


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_takes_its_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zsh"]) == 0
    script = tmp_path / "maskcls.zsh"
    script.write_text(capsys.readouterr().out)
    code = (
        "autoload -Uz compinit && compinit -u -D\n"
        f'eval "$(<{script})"\nprint -r -- "${{(k)_comps[(R)_shtab_maskcls*]}}"\n'
    )
    done = subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split()) == sorted(parser.prog for parser in command_parsers())


def test_a_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = builtins.__import__

    def refuse(name: str, *args: Any, **options: Any) -> Any:
        if name == "shtab":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return plain(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert main(["bash"]) == 1
    assert "pip install 'maskcls[completion]'" in capsys.readouterr().err
