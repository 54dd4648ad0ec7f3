"""Data sets over the people of one or several data folders. Pixels come from the cache.

The names are those of the original project. Unlike there, a picture's labels are never kept on the
class, and a split is always by person.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from maskcls.data.cache import open_cache
from maskcls.data.fixes import Fix, apply_fixes
from maskcls.data.profiles import Profile, read_all_profiles
from maskcls.data.splits import Split, split_people, split_table
from maskcls.errors import DataError, PictureError
from maskcls.files import cache_folder
from maskcls.images import read_image
from maskcls.labels import MULTI, TASKS, Task
from maskcls.preprocessing import PreprocessSpec

Item = tuple[Tensor, int, int]
"""Pixels uint8 (H, W, 3), class, index."""


class MaskBaseDataset(Dataset[Item]):
    """All pictures of all people, labelled for one task; by default with the 18 classes.

    Pictures that cannot be read are left out and listed in `unreadable`.

    Raises:
        DataError: see `read_profiles`; no picture at all can be read.
        PictureError: with `strict`, a picture that cannot be read.
    """

    task: Task = MULTI

    def __init__(
        self,
        data_dirs: Sequence[Path],
        spec: PreprocessSpec | None = None,
        *,
        task: Task | None = None,
        fixes: Sequence[Fix] = (),
        cache: str = "auto",
        workers: int = 2,
        strict: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        self.task = task or self.task
        self.spec = spec or PreprocessSpec()
        self.profiles: list[Profile] = apply_fixes(read_all_profiles(data_dirs), fixes)
        rows = [(profile, picture) for profile in self.profiles for picture in profile.pictures]
        cached = open_cache(
            [picture.path for _, picture in rows],
            self.spec,
            cache_folder(cache),
            workers=workers,
            say=say,
        )
        self.unreadable: tuple[str, ...] = tuple(cached.errors.values())
        if strict and self.unreadable:
            raise PictureError(f"{len(self.unreadable)} unreadable: {'; '.join(self.unreadable)}")
        kept = [index for index in range(len(rows)) if index not in cached.errors]
        if not kept:
            raise DataError(
                f"none of {len(rows)} pictures can be read, first: {self.unreadable[0]}"
            )

        self._pixels = cached.pixels
        self._rows = np.array(kept)  # index in this data set → row of the cache
        self.paths: list[Path] = [rows[index][1].path for index in kept]
        self.people: list[str] = [rows[index][0].person for index in kept]
        self.digests: dict[str, str] = {
            str(picture.path): digest
            for (_, picture), digest in zip(rows, cached.digests, strict=True)
        }
        self.races: list[str] = [rows[index][0].race for index in kept]
        self.ages: np.ndarray = np.array([rows[index][0].age for index in kept])  # (N,), years
        self.attributes: dict[str, np.ndarray] = {
            "mask": np.array([int(rows[index][1].mask) for index in kept], dtype=np.int64),
            "gender": np.array([int(rows[index][0].gender) for index in kept], dtype=np.int64),
            "age": np.array([int(rows[index][0].age_group) for index in kept], dtype=np.int64),
        }  # attribute → (N,), its classes
        self.labels: np.ndarray = self.task.encode(**self.attributes)  # (N,), classes of the task

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Item:
        # A copy: torch warns of memory that it cannot write, as the cache's is.
        pixels = torch.from_numpy(self._pixels[self._rows[index]].copy())
        return pixels, int(self.labels[index]), index

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """A whole batch in one gathering: uint8 (B, H, W, 3), classes (B,), indices (B,)."""
        chosen = np.asarray(indices, dtype=np.int64)
        return (
            torch.from_numpy(self._pixels[self._rows[chosen]]),
            torch.from_numpy(self.labels[chosen]),
            torch.from_numpy(chosen),
        )


class MaskSplitByProfileDataset(MaskBaseDataset):
    """A data set that is split by person (profile) into training and validation."""

    def split(
        self,
        *,
        val_ratio: float = 0.2,
        fold: int | None = None,
        folds: int | None = None,
        seed: int = 0,
    ) -> tuple[Subset[Item], Subset[Item], Split]:
        """(training pictures, validation pictures, the people on either side).

        Raises:
            ConfigError, DataError: as `split_people`.
            DataError: a side whose pictures are all unreadable.
        """
        people = split_people(self.profiles, val_ratio=val_ratio, fold=fold, folds=folds, seed=seed)
        sides = []
        for name, side in (("training", people.train), ("validation", people.val)):
            indices = [index for index, person in enumerate(self.people) if person in side]
            if not indices:
                raise DataError(f"no readable picture of the {len(side)} {name} people")
            sides.append(Subset(self, indices))
        return sides[0], sides[1], people

    def split_table(self, split: Split) -> str:
        """The text of `split.csv`."""
        return split_table(self.profiles, split, self.digests)


class MaskGenderDataset(MaskSplitByProfileDataset):
    """Labelled for `mask_gender`: mask * 2 + gender, 6 classes."""

    task = TASKS["mask_gender"]


class AgeDataset(MaskSplitByProfileDataset):
    """Labelled for `age`, 3 classes."""

    task = TASKS["age"]


class TestDataset(Dataset[tuple[Tensor, int]]):
    """Pictures without labels: pixels uint8 (H, W, 3) as training sees them, and the index.

    Raises (on access):
        PictureError: the picture cannot be read.
    """

    __test__ = False  # the name is the original's; pytest would take it for a test

    def __init__(self, paths: Sequence[Path], spec: PreprocessSpec) -> None:
        self.paths = list(paths)
        self.spec = spec

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self.spec.resize(read_image(self.paths[index]))
        return torch.from_numpy(pixels.copy()), index
