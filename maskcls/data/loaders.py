"""Batches: the order of pictures as a pure function of (seed, epoch)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, Subset

from maskcls.data.datasets import Item

Batch = tuple[Tensor, Tensor, Tensor]
"""Pixels uint8 (B, H, W, 3), classes (B,), indices (B,)."""


class EpochBatches(Sampler[list[int]]):
    """Shuffled batches of an epoch, as even as whole pictures allow.

    Sizes differ by one at most: a last batch of one picture would break batch normalisation, and
    dropping it would leave pictures unseen. (So an odd number in batches of 2 has one of 3.)
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size = size
        self.batches = max(1, min(math.ceil(size / batch_size), size // 2))
        self.seed = seed
        self.epoch = 0
        self.start = 0  # batches of the epoch that are left out: a resumed training has seen them

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        for part in np.array_split(order, self.batches)[self.start :]:
            yield part.tolist()


def training_loader(pictures: Subset[Item], batch_size: int, seed: int) -> DataLoader[Batch]:
    """Shuffled batches; set `epoch` and `start` of `loader.batch_sampler` before each epoch.

    No worker processes: with the pixels in the cache a batch is one gathering from memory.
    """
    sampler = EpochBatches(len(pictures), batch_size, seed)
    return DataLoader(pictures, batch_sampler=sampler, collate_fn=_as_is)  # type: ignore[arg-type]


def validation_loader(pictures: Subset[Item], batch_size: int) -> DataLoader[Batch]:
    """Each picture once, in order."""
    return DataLoader(pictures, batch_size=batch_size, collate_fn=_as_is)  # type: ignore[arg-type]


def _as_is(batch: Batch) -> Batch:
    # __getitems__ gathers a whole batch, so there is nothing left to collate. (torch's types know
    # only data sets that give a batch as a list of items.)
    return batch
