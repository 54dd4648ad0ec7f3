"""How torchrun has started this program: alone, or as one of several processes that train together;
and how a user starts the next one.

torchrun says so in the environment, so that nothing need be imported to know.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence

from maskcls.errors import ConfigError


def processes_started() -> int:
    """How many of them there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_number() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def refuse_several(what: str) -> None:
    """
    Raises:
        ConfigError: there are several, and `what` takes one.
    """
    if (count := processes_started()) > 1:
        raise ConfigError(
            f"{what} cannot be shared by the {count} processes of torchrun; start it without"
        )


def command_line(words: Sequence[object]) -> str:
    """A command to be pasted into a shell."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)
