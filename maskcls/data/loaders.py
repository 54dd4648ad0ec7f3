"""Batches: the order of pictures as a pure function of (seed, epoch)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from maskcls.data.datasets import Item

Batch = tuple[Tensor, Tensor, Tensor]
"""Pixels uint8 (B, H, W, 3), classes (B,), indices (B,). Where several processes share a batch,
each has the pixels of its own rows, and the classes and indices of all."""

SAMPLING_POWERS = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}
"""A picture is drawn in proportion to its class's frequency to the minus this."""


@dataclass(frozen=True)
class Share:
    """What this process computes of each batch: all of it, unless several share it.

    A batch is computed in `parts`, one after the other, and of each part every process has a piece.
    Parts and pieces are as even as whole pictures allow, and each row is in one of them: so a batch
    is the same pictures, in the same parts, for any number of processes.
    """

    process: int = 0
    processes: int = 1
    parts: int = 1  # at most; none has fewer than two pictures

    def pieces(self, count: int) -> list[list[np.ndarray]]:
        """Part → process → rows of a batch of `count`."""
        parts = min(self.parts, max(1, count // 2))
        return [
            np.array_split(part, self.processes) for part in np.array_split(np.arange(count), parts)
        ]

    def rows(self, count: int) -> np.ndarray:
        """The own rows, part by part. Where there are none it is row 0, so that the process has
        something to take part with; nobody counts what it answers."""
        own = np.concatenate([part[self.process] for part in self.pieces(count)])
        return own if len(own) else np.zeros(1, dtype=np.int64)

    def sizes(self, count: int) -> list[list[int]]:
        """Part → process → how many rows it really has."""
        return [[len(rows) for rows in part] for part in self.pieces(count)]


class EpochBatches(Sampler[list[int]]):
    """Shuffled batches of an epoch, as even as whole pictures allow.

    Sizes differ by one at most: a last batch of one picture would break batch normalisation, and
    dropping it would leave pictures unseen. (So an odd number in batches of 2 has one of 3.)

    `classes`: (size,) classes of the pictures, and `power` how much rare ones are favoured: an
    epoch is as long as without, and of each class it holds a share in proportion to its frequency
    to the 1 - power (Kang et al. 2020, arXiv:1910.09217). Of a class that is drawn more often than
    it has pictures each is drawn, and none twice as long as another has not been; of one that is
    drawn less often an epoch holds another part each time. What is drawn for the (k + 1)-th time
    is given as position + k * size.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        classes: np.ndarray | None = None,
        power: float = 0.0,
    ) -> None:
        self.size = size
        self.batches = max(1, min(math.ceil(size / batch_size), size // 2))
        self.smallest = size // self.batches  # pictures of the smallest batch
        self.seed = seed
        self.classes = classes
        self.power = power
        self.epoch = 0
        self.start = 0  # batches of the epoch that are left out: a resumed training has seen them

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(
            self.size if self.classes is None else self._draws(self.classes, rng)
        )
        for part in np.array_split(order, self.batches)[self.start :]:
            yield part.tolist()

    def _draws(self, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What an epoch with favoured classes holds (size,), not yet shuffled."""
        present, counts = np.unique(classes, return_counts=True)
        wanted = counts ** (1 - self.power)
        # Whole numbers whose sum is the size: from borders that are rounded.
        borders = np.floor(np.cumsum(wanted / wanted.sum()) * self.size + 0.5).astype(int)
        draws = []
        for label, count, quota in zip(present, counts, np.diff(borders, prepend=0), strict=True):
            members = rng.permutation(np.flatnonzero(classes == label))
            times = np.arange(quota) // count
            draws.append(np.resize(members, quota) + times * self.size)
        return np.concatenate(draws)


class _Shared(Dataset[Item]):
    """Pictures at positions of `EpochBatches`, of which a process loads its own.

    Random numbers are keyed on a picture's index. So that one which an epoch holds several times
    is not the same several times, its index is that of the data set + k * the data set's size.
    """

    def __init__(self, pictures: Subset[Item], share: Share) -> None:
        self.pictures = pictures
        self.share = share

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        times, members = np.divmod(positions, len(self.pictures))
        own = members[self.share.rows(len(members))]
        pixels: Tensor = self.pictures.__getitems__(own.tolist())[0]  # type: ignore[assignment]
        dataset = self.pictures.dataset
        indices = np.asarray(self.pictures.indices)[members]
        classes = torch.from_numpy(dataset.labels[indices])  # type: ignore[attr-defined]
        again = times * len(dataset)  # type: ignore[arg-type]
        return pixels, classes, torch.from_numpy(indices + again)


def training_loader(
    pictures: Subset[Item],
    batch_size: int,
    seed: int,
    sampling: str = "none",
    share: Share | None = None,
) -> DataLoader[Batch]:
    """Shuffled batches; set `epoch` and `start` of `loader.batch_sampler` before each epoch.

    `sampling`: a key of `SAMPLING_POWERS`; see `EpochBatches`. A batch's indices say which pictures
    of the data set they are, modulo its size. `share`: by default all of each batch.

    No worker processes: with the pixels in the cache a batch is one gathering from memory.
    """
    power = SAMPLING_POWERS[sampling]
    labels = pictures.dataset.labels[pictures.indices] if power else None  # type: ignore[attr-defined]
    sampler = EpochBatches(len(pictures), batch_size, seed, labels, power)
    drawn = _Shared(pictures, share or Share())
    return DataLoader(drawn, batch_sampler=sampler, collate_fn=_as_is)  # type: ignore[arg-type]


def validation_loader(
    pictures: Subset[Item], batch_size: int, share: Share | None = None
) -> DataLoader[Batch]:
    """Each picture once, in order. `share`: by default all of each batch."""
    if share is not None:
        return DataLoader(_Shared(pictures, share), batch_size=batch_size, collate_fn=_as_is)  # type: ignore[arg-type]
    return DataLoader(pictures, batch_size=batch_size, collate_fn=_as_is)  # type: ignore[arg-type]


def _as_is(batch: Batch) -> Batch:
    # __getitems__ gathers a whole batch, so there is nothing left to collate. (torch's types know
    # only data sets that give a batch as a list of items.)
    return batch
