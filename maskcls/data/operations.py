"""What RandAugment does to pictures, on whole batches of tensors.

An operation takes float32 (B, 3, H, W) on the scale 0–255, a `level` from 0 (nothing) to 1 (the
most) and for each picture a `sign` (B,) of 1 or -1: the direction, of operations that have two. It
answers the same shape and scale. Each picture is changed by itself.

The fourteen operations are those of Cubuk et al. 2020 (arXiv:1909.13719), and the ranges those of
torchvision's `RandAugment`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

ENHANCE = 0.9  # of colour, contrast, brightness and sharpness: factors from 0.1 to 1.9
SHEAR = 0.3
SHIFT = 150 / 331  # of the width and height
DEGREES = 30.0
BITS = 4  # of eight that are lost

Operation = Callable[[Tensor, float, Tensor], Tensor]


def grey(images: Tensor) -> Tensor:
    """ITU-R 601 luma, (B, 1, H, W)."""
    luma = torch.tensor((0.299, 0.587, 0.114), device=images.device).view(1, 3, 1, 1)
    return (images * luma).sum(dim=1, keepdim=True)


def blend(images: Tensor, toward: Tensor, factor: Tensor) -> Tensor:
    """`factor` (B,): 1 keeps the pictures, 0 gives `toward`."""
    return toward + (images - toward) * factor.view(-1, 1, 1, 1)


def sample(images: Tensor, matrix: Tensor) -> Tensor:
    """Bilinear sampling through `matrix` (B, 2, 3), as of `F.affine_grid`; edges are mirrored."""
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _warp(images: Tensor, xx: Tensor, xy: Tensor, yx: Tensor, yy: Tensor) -> Tensor:
    """Each (B,): where x and y of a pixel come from, in steps of pixels about the middle."""
    # Coordinates run from -1 to 1 in both directions.
    aspect = images.shape[2] / images.shape[3]
    zero = torch.zeros_like(xx)
    rows = torch.stack([xx, xy * aspect, zero, yx / aspect, yy, zero], dim=1)
    return sample(images, rows.view(-1, 2, 3))


def _shift(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Each (B,): parts of the width and of the height."""
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows = torch.stack([one, zero, 2 * x, zero, one, 2 * y], dim=1)
    return sample(images, rows.view(-1, 2, 3))


def _rotate(images: Tensor, level: float, sign: Tensor) -> Tensor:
    angle = math.radians(DEGREES) * level * sign
    return _warp(images, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def _shear_x(images: Tensor, level: float, sign: Tensor) -> Tensor:
    one = torch.ones_like(sign)
    return _warp(images, one, SHEAR * level * sign, 0 * one, one)


def _shear_y(images: Tensor, level: float, sign: Tensor) -> Tensor:
    one = torch.ones_like(sign)
    return _warp(images, one, 0 * one, SHEAR * level * sign, one)


def _enhance(images: Tensor, toward: Tensor, level: float, sign: Tensor) -> Tensor:
    return blend(images, toward, 1 + ENHANCE * level * sign).clamp(0, 255)


def _sharpness(images: Tensor, level: float, sign: Tensor) -> Tensor:
    blurred = TF.adjust_sharpness(images / 255, 0.0) * 255
    return _enhance(images, blurred, level, sign)


def _equalize(images: Tensor, level: float, sign: Tensor) -> Tensor:
    equalized: Tensor = TF.equalize(_bytes(images))
    return equalized.to(images.dtype)


def _posterize(images: Tensor, level: float, sign: Tensor) -> Tensor:
    coarse: Tensor = TF.posterize(_bytes(images), 8 - round(BITS * level))
    return coarse.to(images.dtype)


def _bytes(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).to(torch.uint8)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda images, level, sign: images,
    "autocontrast": lambda images, level, sign: TF.autocontrast(images / 255) * 255,
    "equalize": _equalize,
    "posterize": _posterize,
    "solarize": lambda images, level, sign: images.where(images <= 255 * (1 - level), 255 - images),
    "colour": lambda images, level, sign: _enhance(images, grey(images), level, sign),
    "contrast": lambda images, level, sign: _enhance(
        images, grey(images).mean(dim=(1, 2, 3), keepdim=True), level, sign
    ),
    "brightness": lambda images, level, sign: _enhance(images, 0 * images, level, sign),
    "sharpness": _sharpness,
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": lambda images, level, sign: _shift(images, SHIFT * level * sign, 0 * sign),
    "translate_y": lambda images, level, sign: _shift(images, 0 * sign, SHIFT * level * sign),
}
