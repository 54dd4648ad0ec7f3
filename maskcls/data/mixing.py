"""Two pictures as one: targets are mixed as pixels are, so that a network learns from faces that
nobody has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MIXUP_ALPHA = 0.4  # of the Beta distribution that shares are drawn from; most pictures keep most
CUTS = (0.35, 0.65)  # where a face is cut, as a part of the width: near its own axis
_STREAM = 1  # apart from the augmentation's random numbers of the same picture


class Mixing:
    """Mixes pictures of a batch with their partners: the first with the last, and so on; or, with
    `rarity`, one that is drawn from the others of the batch in proportion to it.

    `mixup`, `cutmix`: shares of the pictures that are blended with their partner (Zhang et al.
    2018, arXiv:1710.09412), and that get their right half from it (a face is cut from top to
    bottom, so that both halves stay a face; after Yun et al. 2019, arXiv:1905.04899). Which, and
    how much, is a pure function of (seed, epoch, index), as in `maskcls.data.augmentation`.

    `rarity`: (N,) above 0, how strongly each picture of the data set is drawn as a partner. One
    over the pictures of its class makes all classes as likely, where no sampling has done that.
    Indices count modulo N.
    """

    def __init__(
        self, mixup: float, cutmix: float, seed: int = 0, rarity: np.ndarray | None = None
    ) -> None:
        self.mixup = mixup
        self.cutmix = cutmix
        self.seed = seed
        self.rarity = rarity

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Sequence[int], epoch: int
    ) -> tuple[Tensor, Tensor]:
        """float32 (B, 3, H, W) and shares (B, C), with the pictures' indices → the same, mixed."""
        width = images.shape[3]
        own = np.ones((len(indices), width), dtype=np.float32)  # of each column
        partners = np.arange(len(indices))[::-1].copy()
        for row, index in enumerate(indices):
            rng = np.random.default_rng((self.seed, epoch, int(index), _STREAM))
            chance = rng.random()
            if chance < self.mixup:
                own[row] = rng.beta(MIXUP_ALPHA, MIXUP_ALPHA)
            elif chance < self.mixup + self.cutmix:
                own[row, round(rng.uniform(*CUTS) * width) :] = 0
            else:
                continue
            if self.rarity is not None and len(indices) > 1:
                chances = self.rarity[np.asarray(indices) % len(self.rarity)]
                chances[row] = 0
                partners[row] = rng.choice(len(indices), p=chances / chances.sum())
        kept = torch.from_numpy(own).to(images.device)
        share = kept.mean(dim=1, keepdim=True)  # (B, 1)
        others = torch.from_numpy(partners).to(images.device)
        mixed = torch.lerp(images[others], images, kept[:, None, None, :])
        return mixed, torch.lerp(targets[others], targets, share)
