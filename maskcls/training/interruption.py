"""Ctrl-C and SIGTERM in a training: the step is finished and saved, then it ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

import ignite.distributed as idist

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Within its block the first signal is only noted: `signal` says which. Whoever can stop well
    looks there, and calls `end` when all is saved. A second signal ends the block at once.

    Outside the main thread, which alone may set handlers, signals do what they did before. One that
    is ignored, as Ctrl-C is for a job in the background, stays ignored.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether to save and end. Where several processes train, a signal to one of them is one to
        all, so that they end after the same step."""
        told = int(idist.all_reduce(self.signal or 0, "MAX"))
        if told:  # else leave what may have come in this moment
            self.signal = told
        return told > 0

    def end(self) -> NoReturn:
        """Ends as the signal would have; see `end_by`."""
        end_by(self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal is not None, number
        if again:
            self.end()


def end_by(number: int | None) -> NoReturn:
    """
    Raises:
        SystemExit: with the code of a process that SIGTERM ends.
        KeyboardInterrupt: for any other signal.
    """
    if number == signal.SIGTERM:
        raise SystemExit(128 + signal.SIGTERM)
    raise KeyboardInterrupt
