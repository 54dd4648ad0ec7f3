"""Augmentation of whole batches of tensors, on the device where the network trains.

An augmentation takes pixels as they lie in the cache, uint8 (B, H, W, 3) 0–255, with the pictures'
indices and the epoch, and answers normalised float32 (B, 3, H, W). Every random number is a pure
function of (seed, epoch, index), so a picture is changed in the same way whatever batch or process
it falls into, and a resumed training sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from maskcls.config import AUGMENTATION_NAMES, DEFAULT_CROP, MAX_MAGNITUDE
from maskcls.data.operations import OPERATIONS, blend, grey, sample
from maskcls.errors import ConfigError, unknown
from maskcls.preprocessing import PreprocessSpec


class BaseAugmentation:
    """Resize, to tensor, normalise; no randomness. What validation and labelling use.

    Pixels that already have the spec's size, as all from the cache do, are not cropped and resized
    again.

    With an `erase_share` above 0 so many of the pictures lose a rectangle at last (random erasing,
    Zhong et al. 2020, arXiv:1708.04896).
    """

    erase_share = 0.0
    erase_side = (0.1, 0.35)  # of the height and width

    def __init__(self, spec: PreprocessSpec | None = None, seed: int = 0) -> None:
        crop = DEFAULT_CROP.get(type(self).__name__, (1.0, 1.0))
        self.spec = spec or PreprocessSpec(crop=crop)
        self.seed = seed
        self._mean = torch.tensor(self.spec.mean).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(self.spec.std).view(1, 3, 1, 1) * 255

    def __call__(
        self,
        pixels: Tensor | Image.Image,
        indices: Sequence[int] | None = None,
        epoch: int = 0,
    ) -> Tensor:
        """uint8 (B, H, W, 3), or one `RGB` picture → float32 (B, 3, height, width) normalised.

        `indices`: which pictures of the data set these are; by default 0 … B - 1.
        """
        if isinstance(pixels, Image.Image):
            pixels = torch.from_numpy(self.spec.resize(pixels).copy())[None]
        images = pixels.permute(0, 3, 1, 2)
        if images.shape[2:] != self.spec.size:
            left, top, right, bottom = self.spec.crop_box(images.shape[2], images.shape[3])
            images = images[:, :, top:bottom, left:right]
            images = TF.resize(images, list(self.spec.size), antialias=True)
        rngs = [
            np.random.default_rng((self.seed, epoch, int(index)))
            for index in (range(len(images)) if indices is None else indices)
        ]
        images = self.augment(images.to(torch.float32), rngs)
        if self.erase_share:
            images = self._erase(images, (_uniform(rngs, 5, images) + 1) / 2)
        mean, std = self._mean.to(images.device), self._std.to(images.device)
        return self.after_normalise((images - mean) / std, rngs)

    def augment(self, images: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
        """Changes float32 (B, 3, H, W) on the scale 0–255; `rngs`: a generator per picture."""
        return images

    def after_normalise(self, images: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
        """Changes normalised float32 (B, 3, H, W)."""
        return images

    def _erase(self, images: Tensor, uniform: Tensor) -> Tensor:
        """A grey rectangle over some pictures. uniform: (B, 5) in 0..1."""
        low, high = self.erase_side
        height, width = (low + (high - low) * uniform[:, 1:3]).T
        top, left = uniform[:, 3] * (1 - height), uniform[:, 4] * (1 - width)
        y = torch.linspace(0, 1, images.shape[2], device=images.device)
        x = torch.linspace(0, 1, images.shape[3], device=images.device)
        rows = (y >= top[:, None]) & (y < (top + height)[:, None])  # (B, H)
        columns = (x >= left[:, None]) & (x < (left + width)[:, None])  # (B, W)
        chosen = uniform[:, 0] < self.erase_share
        erased = chosen[:, None, None] & rows[:, :, None] & columns[:, None, :]
        return torch.where(erased[:, None], self._mean.to(images.device), images)


class AddGaussianNoise(BaseAugmentation):
    """Adds Gaussian noise to normalised pictures.

    `std` is in units of the pictures' own standard deviation. The original's default of 1 buries
    the face in noise as strong as the picture.
    """

    def __init__(
        self,
        spec: PreprocessSpec | None = None,
        seed: int = 0,
        mean: float = 0.0,
        std: float = 0.1,
    ) -> None:
        super().__init__(spec, seed)
        self.noise_mean = mean
        self.noise_std = std

    def after_normalise(self, images: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
        shape = tuple(images.shape[1:])
        noise = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in rngs])
        return images + torch.from_numpy(noise).to(images.device) * self.noise_std + self.noise_mean


class CustomAugmentation(AddGaussianNoise):
    """The original's: centre crop (320, 256), resize, colour jitter of 0.1, normalise, noise.

    The crop stands in the `PreprocessSpec`, as a fraction of the picture, so that validation and
    labelling crop as training does.
    """

    jitter = 0.1  # of brightness, contrast, saturation; hue as a part of the colour circle

    def augment(self, images: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
        uniform = _uniform(rngs, 4, images)  # (B, 4) in -1..1
        brightness, contrast, saturation = (1 + self.jitter * uniform[:, :3]).T
        images = images * brightness.view(-1, 1, 1, 1)
        images = blend(images, grey(images).mean(dim=(1, 2, 3), keepdim=True), contrast)
        images = blend(images, grey(images), saturation)
        return _rotate_hue(images, self.jitter * uniform[:, 3]).clamp(0, 255)


class BestAugmentation(BaseAugmentation):
    """The best of its kind here: flip, rotation, scale, shift, light, erasing. From scratch,
    `RandAugmentation` measured better still."""

    degrees = 15.0
    scale = 0.15  # 1/1.15 to 1.15
    shift = 0.1  # of half the width and height
    light = 0.25  # brightness, contrast
    tint = 0.08  # each channel by itself
    erase_share = 0.25

    def augment(self, images: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
        uniform = _uniform(rngs, 10, images)  # (B, 10) in -1..1
        flip = torch.where(uniform[:, 0] < 0, -1.0, 1.0)
        images = self._move(images, flip, uniform[:, 1:5])
        brightness, contrast = (1 + self.light * uniform[:, 5:7]).T
        images = blend(images, images.mean(dim=(1, 2, 3), keepdim=True), contrast)
        channels = brightness.view(-1, 1) * (1 + self.tint * uniform[:, 7:10])
        lit: Tensor = images * channels[:, :, None, None]
        return lit.clamp(0, 255)

    def _move(self, images: Tensor, flip: Tensor, uniform: Tensor) -> Tensor:
        """Flip, rotation, scale and shift in one bilinear sampling; edges are mirrored."""
        angle = math.radians(self.degrees) * uniform[:, 0]
        zoom = (1 + self.scale) ** uniform[:, 1]
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        shift_x, shift_y = (self.shift * uniform[:, 2:4]).T
        # Coordinates run from -1 to 1 in both directions, so a rotation has to undo the aspect.
        aspect = images.shape[2] / images.shape[3]
        matrix = torch.stack(
            [
                torch.stack([cos * flip, -sin * aspect, shift_x], dim=1),
                torch.stack([sin / aspect * flip, cos, shift_y], dim=1),
            ],
            dim=1,
        )  # (B, 2, 3)
        return sample(images, matrix)


class RandAugmentation(BaseAugmentation):
    """A flip, and then RandAugment (Cubuk et al. 2020, arXiv:1909.13719): of the fourteen
    operations each picture gets as many as `operations`, drawn anew each time, at a strength that
    all share, `magnitude` of at most `MAX_MAGNITUDE`.
    """

    def __init__(
        self,
        spec: PreprocessSpec | None = None,
        seed: int = 0,
        operations: int = 2,
        magnitude: float = 9.0,
    ) -> None:
        super().__init__(spec, seed)
        self.operations = operations
        self.magnitude = magnitude

    def augment(self, images: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
        drawn = np.stack([rng.integers(len(OPERATIONS), size=self.operations) for rng in rngs])
        directions = torch.where(_uniform(rngs, 1 + self.operations, images) < 0, -1.0, 1.0)
        images = torch.where(directions[:, 0].view(-1, 1, 1, 1) < 0, images.flip(3), images)
        for turn in range(self.operations):
            for number, operation in enumerate(OPERATIONS.values()):
                rows = torch.from_numpy(np.flatnonzero(drawn[:, turn] == number)).to(images.device)
                if len(rows):
                    sign = directions[rows, 1 + turn]
                    images[rows] = operation(images[rows], self.magnitude / MAX_MAGNITUDE, sign)
        return images


_AUGMENTATIONS: dict[str, type[BaseAugmentation]] = {
    cls.__name__: cls
    for cls in (
        BaseAugmentation,
        AddGaussianNoise,
        CustomAugmentation,
        BestAugmentation,
        RandAugmentation,
    )
}


def create_augmentation(
    name: str,
    spec: PreprocessSpec,
    seed: int = 0,
    *,
    erasing: float | None = None,
    operations: int = 2,
    magnitude: float = 9.0,
) -> BaseAugmentation:
    """An augmentation by name. `erasing`: its `erase_share`, if not its own. `operations` and
    `magnitude` are those of `RandAugmentation`.

    Raises:
        ConfigError: no such augmentation; names the nearest.
    """
    if name not in _AUGMENTATIONS:
        raise ConfigError(unknown("augmentation", name, AUGMENTATION_NAMES))
    augmentation = (
        RandAugmentation(spec, seed, operations, magnitude)
        if name == "RandAugmentation"
        else _AUGMENTATIONS[name](spec, seed)
    )
    if erasing is not None:
        augmentation.erase_share = erasing
    return augmentation


def _uniform(rngs: Sequence[np.random.Generator], count: int, like: Tensor) -> Tensor:
    """(B, count) in -1..1, one row per picture's own generator."""
    rows = np.stack([rng.random(count, dtype=np.float32) for rng in rngs])
    return torch.from_numpy(rows * 2 - 1).to(like.device)


def _rotate_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turns the colours about the grey axis by `turn` (B,) parts of the circle.

    A rotation in YIQ space: for the small turns of a jitter as good as HSV's, and without its
    branches per pixel.
    """
    to_yiq = torch.tensor(
        [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]],
        device=images.device,
    )
    angle = 2 * math.pi * turn
    rotation = torch.zeros(len(turn), 3, 3, device=images.device)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = angle.cos()
    rotation[:, 1, 2] = -angle.sin()
    rotation[:, 2, 1] = angle.sin()
    matrix = torch.linalg.inv(to_yiq) @ rotation @ to_yiq  # (B, 3, 3)
    return torch.einsum("bij,bjhw->bihw", matrix, images)
