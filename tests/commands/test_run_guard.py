"""How commands end."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import maskcls
from maskcls.commands._run import env_default, env_help, guarded
from maskcls.errors import ConfigError, DataError, MaskclsError

ROOT = Path(maskcls.__file__).parents[1]


def ending_with(error: BaseException) -> Callable[[], int]:
    @guarded
    def main() -> int:
        raise error

    return main


def test_result_and_arguments_pass_through() -> None:
    @guarded
    def main(argv: list[str], *, extra: int = 0) -> int:
        """Doc."""
        return len(argv) + extra

    assert main(["a"], extra=2) == 3
    assert (main.__name__, main.__doc__) == ("main", "Doc.")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("no task 'x'"), 2, "error: no task 'x'\n"),
        (DataError("a.csv: empty"), 1, "error: a.csv: empty\n"),
        (MaskclsError("one\n  two"), 1, "error: one\n  two\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a/last.pt"),
            1,
            "error: no space left on device while writing a/last.pt; free some and run again\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "error: no space left on device; free some and run again\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "b"),
            1,
            "error: b: Permission denied\n",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", Path("c")),
            1,
            "error: c: No such file or directory\n",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "d"),
            1,
            "error: d: Read-only file system\n",
        ),
        (
            MemoryError("e.png: out of memory"),
            1,
            "error: e.png: out of memory; free some and run again\n",
        ),
        (MemoryError(), 1, "error: out of memory; free some and run again\n"),
    ],
)
def test_a_users_error_is_one_line(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending_with(error)() == code
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bug"),
        FileNotFoundError("raised by hand, names no file"),
        OSError(errno.EDOM, "of no file operation", "e"),
        BrokenPipeError(errno.EPIPE, "of a worker, not of stdout"),
        SystemExit(2),
    ],
)
def test_a_bug_keeps_its_traceback(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        ending_with(error)()
    assert caught.value is error


PRINT = """
from maskcls.commands._run import guarded

@guarded
def main():
    for number in range({lines}):
        print("line", number)
    return 0

raise SystemExit(main())
"""


WAIT = """
import time
from maskcls.commands._run import guarded

@guarded
def main():
    try:
        print("ready", flush=True)
        while True:  # a signal that comes just before a sleep does not end it
            time.sleep(0.05)
    finally:
        print("tidy", flush=True)
    return 0

raise SystemExit(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals end differently there")
def test_sigterm_ends_a_command_tidily() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate(timeout=60) == ("tidy\n", "terminated\n")
    assert process.returncode == 143


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end differently there")
@pytest.mark.parametrize("lines", [1, 100_000])  # in the last flush; in the middle of a print
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_no_error(lines: int, unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", PRINT.format(lines=lines)],
            stdout=writing,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            cwd=ROOT,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_name_that_the_terminal_cannot_show_is_no_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINT.format(lines=1).replace("line", "\uac00")],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, rb"\uac00 0")


def test_defaults_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SM_X", raising=False)
    assert env_default("SM_X") is None
    assert env_help("SM_X", "gt.csv") == "default: $SM_X/gt.csv, which is not set"
    monkeypatch.setenv("SM_X", "")
    assert env_default("SM_X") is None
    monkeypatch.setenv("SM_X", "some/where%")
    assert env_default("SM_X") == Path("some/where%")
    assert env_help("SM_X") == "default: $SM_X, now some/where%%"


@pytest.mark.filterwarnings("default")
def test_a_warning_is_a_line_without_its_place_in_the_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @guarded
    def main() -> int:
        warnings.warn("best.pt: damaged; taking best.prev.pt instead", stacklevel=1)
        return 0

    assert main() == 0
    assert capsys.readouterr().err == "warning: best.pt: damaged; taking best.prev.pt instead\n"


def test_an_abbreviated_option_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    from maskcls.commands import data, evaluate, infer, train

    for command, argv in (
        (train, ["--epoch", "3"]),
        (infer, ["--image", "x"]),
        (evaluate, ["--pre", "x"]),
        (data, ["check", "x", "--fix", "y"]),
    ):
        with pytest.raises(SystemExit) as ended:
            command.main(argv)
        assert ended.value.code == 2
        assert "unrecognized arguments" in capsys.readouterr().err
