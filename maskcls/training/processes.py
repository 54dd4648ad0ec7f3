"""Several processes that train one network, as torchrun starts them, through Ignite's `idist`.

All hold the same network and compute their share of each batch. Answers are few numbers: they are
gathered, so that loss, metrics and what follows from them are those of the whole batch, in every
process alike. Files and messages are the first process's.

Where there is but one process, everything here changes nothing.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad

from maskcls.errors import MaskclsError, TrainingError
from maskcls.launch import process_number, processes_started
from maskcls.training.normalisation import share_statistics

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

PATIENCE = timedelta(days=1)
"""How long a process waits for the others. One of them may be decoding all pictures; of one that
has died, the others hear at once."""
GRACE = 1.0
"""Seconds that a process which ends without a word waits: torchrun ends all when one has gone, and
that one which says why shall have said it."""
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")


@contextmanager
def joined() -> Iterator[None]:
    """Within its block, this is one of the processes that torchrun has started.

    Only the first shows messages and progress bars. Where one fails, it says why, and the others
    end without a word: what fails in all of them is said once.
    """
    if processes_started() == 1:
        yield
        return
    failures = _failures()
    try:
        with ExitStack() as stack:
            if process_number() > 0:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            signal.signal(signal.SIGTERM, _end)
            yield
    except BaseException as error:
        # The process group stays: to leave it in order would take those that are gone.
        if failures is not None and not _is_first_failure(failures):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun's, when that one has gone
            time.sleep(GRACE)
            raise SystemExit(_code(error)) from None
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST):
            raise TrainingError("another process of this training has ended") from None
        raise
    if dist.is_initialized():
        idist.finalize()


def connect(device: torch.device) -> torch.device:
    """`device`, once this process is connected with the others, if there are any: on CPUs through
    gloo; on CUDA through NCCL, and `cuda` is another device for each.

    Raises:
        TrainingError: one device for several processes, or fewer than processes.
    """
    if processes_started() == 1 or dist.is_initialized():
        return device
    if device.type == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # idist takes a GPU wherever it sees one
        idist.initialize("gloo", timeout=PATIENCE)
        return device
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.index is not None:
        raise TrainingError(
            f"--device {device}: names one device for {here} processes; with --device cuda each "
            "takes its own"
        )
    if here > torch.cuda.device_count():
        raise TrainingError(
            f"{here} processes on a machine with {torch.cuda.device_count()} CUDA devices; start "
            "fewer with --nproc_per_node, or take --device cpu"
        )
    idist.initialize("nccl", timeout=PATIENCE)
    return device


def is_first() -> bool:
    """Whether this process writes the files."""
    return bool(idist.get_rank() == 0)


def on_first(make: Callable[[], Any]) -> Any:
    """What `make` answers in the first process, in all of them: plain values."""
    if idist.get_world_size() == 1:
        return make()
    # In ASCII, as JSON is: idist counts letters and sends bytes.
    return json.loads(str(idist.broadcast(json.dumps(make()) if is_first() else "")))


def share_gradients(model: nn.Module) -> nn.Module:
    """Around a network: gradients become the mean over the processes, and batch normalisation takes
    the statistics of the whole batch.

    Converts and trains `model` itself, which is what is evaluated and saved.
    """
    if idist.get_world_size() == 1:
        return model
    on_cuda = idist.backend() == "nccl"
    if not on_cuda:
        share_statistics(model)
    # Made by each call of `auto_model`, and said in other words.
    logging.getLogger("ignite.distributed.auto.auto_model").disabled = True
    shared = idist.auto_model(model, sync_bn=on_cuda)
    # Not as an argument, which newer versions of torch call deprecated and older ones need.
    shared.broadcast_buffers = False  # type: ignore[assignment]
    return shared


def gather(own: Tensor, sizes: Sequence[int]) -> Tensor:
    """The rows of all processes in their order; gradients flow to the own ones.

    own: (sizes[rank], …), and any rows after these are left out. `sizes`: rows of each process.
    """
    if len(sizes) == 1:
        return own
    own = own[: sizes[idist.get_rank()]]
    # Of one size, as `all_gather` wants them.
    missing = [0, 0] * (own.ndim - 1) + [0, max(sizes) - len(own)]
    padded: Tensor = idist.all_gather(pad(own.detach(), missing).contiguous())  # type: ignore[assignment]
    padded_pieces = torch.split(padded, max(sizes))
    pieces = [piece[:size] for piece, size in zip(padded_pieces, sizes, strict=True)]
    pieces[idist.get_rank()] = own
    return torch.cat(pieces)


def check_pieces(model: nn.Module, smallest: int, parts: int) -> None:
    """`smallest`: pictures of the smallest batch, computed in `parts`.

    Raises:
        TrainingError: a process would have no picture, and the network normalises over batches.
    """
    processes = idist.get_world_size()
    normalises = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    if processes > 1 and normalises and smallest < processes * parts:
        raise TrainingError(
            f"batches of {smallest} pictures, in {parts} parts, for {processes} processes: batch "
            "normalisation needs a picture for each; take a larger --batch-size, a smaller "
            "--accumulate or fewer processes"
        )


def _end(number: int, frame: FrameType | None) -> None:
    """Without a word: torchrun, which sends SIGTERM when one has failed, has its own."""
    raise SystemExit(128 + number)


def _failures() -> Store | None:
    """Where the processes of one start count their failures: torchrun's own store. None where
    another program has started them."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, is_master=False, timeout=timedelta(seconds=60)
    )
    run = os.environ.get("TORCHELASTIC_RUN_ID"), os.environ.get("TORCHELASTIC_RESTART_COUNT")
    return dist.PrefixStore(f"maskcls/{run}", store)  # type: ignore[attr-defined]


def _is_first_failure(failures: Store) -> bool:
    try:
        return bool(failures.add("failed", 1) == 1)
    except RuntimeError:  # torchrun is gone, and its store with it
        return True


def _code(error: BaseException) -> int:
    """The exit code of a process that says nothing; see `maskcls.commands._run`."""
    if isinstance(error, MaskclsError):
        return error.exit_code
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 130 if isinstance(error, KeyboardInterrupt) else 1
