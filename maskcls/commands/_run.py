"""What all commands share: how they end, and how their options take defaults from the environment.

Exit codes: 0 done, 1 input that cannot be used, 2 a wrong option, 130 interrupted, 141 nobody reads
the output any more, 143 terminated. A bug ends with its traceback.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import ParamSpec

from maskcls.errors import MaskclsError, MissingExtraError
from maskcls.launch import processes_started

P = ParamSpec("P")

FILE_ERRORS = frozenset(
    (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EIO,
    )
)
"""A user can mend these; with the file's name they say all there is to say."""


EXTRA_OF = {
    "torch": "train",
    "torchvision": "train",
    "ignite": "train",
    "efficientnet_pytorch": "train",
    "tensorboard": "train",
    "onnxscript": "train",
    "onnx": "runtime",
    "onnxruntime": "runtime",
    "shtab": "completion",
    "optuna": "search",
}
"""Package → the extra that brings it."""


def guarded(main: Callable[P, int]) -> Callable[P, int]:
    """Decorates a command's `main`: errors that a user can mend become one `error:` line on stderr
    and an exit code. Everything else keeps its traceback.

        @guarded
        def main(argv: Sequence[str] | None = None) -> int: ...
    """

    @wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A file name that the terminal's encoding lacks is no reason to fail.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            with _terminating(), warnings.catch_warnings():
                warnings.showwarning = _show_warning
                code = main(*args, **kwargs)
            sys.stdout.flush()  # a closed pipe shows here, not in the interpreter's last breath
            return code
        except MaskclsError as error:
            return _fail(str(error), error.exit_code)
        except ModuleNotFoundError as error:
            extra = EXTRA_OF.get(str(error.name).partition(".")[0])
            if extra is None:
                raise
            return _fail(str(MissingExtraError(str(error.name), extra, "this command")), 1)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            if not _stdout_is_closed():
                raise  # some other pipe, of a worker process for one: not the reader's choice
            return 141
        except MemoryError as error:  # without words where Python itself has none left
            return _fail(f"{str(error) or 'out of memory'}; free some and run again", 1)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                where = f" while writing {error.filename}" if error.filename is not None else ""
                return _fail(f"no space left on device{where}; free some and run again", 1)
            if error.errno in FILE_ERRORS and error.filename is not None:
                return _fail(f"{error.filename}: {error.strerror}", 1)
            raise

    return run


def as_one(main: Callable[P, int]) -> Callable[P, int]:
    """Decorates the `main` of a command that torchrun may start several times at once: what they
    say, they say once. See `maskcls.training.processes.joined`.
    """

    @wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        if processes_started() == 1:
            return main(*args, **kwargs)
        from maskcls.training.processes import joined

        with joined():
            return main(*args, **kwargs)

    return run


def env_default(name: str) -> Path | None:
    """The folder or file in an environment variable; None when it is not set, or empty."""
    value = os.environ.get(name)
    return Path(value) if value else None


def env_help(name: str, file: str = "") -> str:
    """For an option's help text: `default: $SM_MODEL_DIR/…, which is not set`."""
    value = os.environ.get(name)
    state = f"now {value}" if value else "which is not set"
    shown = f"${name}/{file}" if file else f"${name}"
    return f"default: {shown}, {state}".replace("%", "%%")  # argparse formats help with %


def offer(action: argparse.Action, names: Iterable[str]) -> None:
    """Has shell completion offer these values of an option that checks its value itself, and so can
    say which one was meant."""
    action.offered = tuple(names)  # type: ignore[attr-defined]


@contextmanager
def _terminating() -> Iterator[None]:
    """SIGTERM ends a command as an error would, so that temporary files are removed on the way."""

    def end(number: int, frame: FrameType | None) -> None:
        print("terminated", file=sys.stderr)
        raise SystemExit(128 + number)

    usual = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if usual:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if usual:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _show_warning(message: Warning | str, *where: object, **more: object) -> None:
    # What a user can act on is the text, not the line of code that said it.
    print(f"warning: {message}", file=sys.stderr)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _stdout_is_closed() -> bool:
    try:
        print(flush=True)  # a flush alone has nothing to write when Python runs unbuffered
    except BrokenPipeError:
        # Python flushes once more when it ends, and would complain: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
