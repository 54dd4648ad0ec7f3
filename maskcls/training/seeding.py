"""Same seed, same result."""

from __future__ import annotations

import random

import ignite.distributed as idist
import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds Python's, numpy's and torch's generators on every device, and asks for deterministic
    convolutions: on a CPU two runs are equal bit for bit, on CUDA up to its atomic additions.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def seed_step(seed: int, iteration: int) -> None:
    """Makes what is random inside a network (dropout, drop connect) a pure function of the
    iteration, so that a resumed training goes on as an uninterrupted one would have; and of the
    process, where several share a batch, so that they do not drop the same.
    """
    # SeedSequence mixes: neighbouring sums such as seed + iteration would share streams.
    process = idist.get_rank()
    words = (seed, iteration, process) if process else (seed, iteration)
    torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))
