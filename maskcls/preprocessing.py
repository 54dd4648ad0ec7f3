"""From an upright picture to what a network takes: centre crop, antialiased resize, normalisation.

A `PreprocessSpec` says how, travels in every checkpoint and ONNX file, and is set nowhere else.
This is its numpy/Pillow form; Pillow's bilinear resize is the reference that other forms are held
against.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from maskcls.errors import ConfigError

MEAN = (0.548, 0.504, 0.479)
STD = (0.237, 0.247, 0.246)
"""Of the competition's training pictures, RGB, in units of 255 levels."""

MIN_SIDE = 32  # pixels; the networks halve their input five times
MAX_SIDE = 2048


@dataclass(frozen=True)
class PreprocessSpec:
    """How pictures become network input.

    The crop is a fraction of the picture's own height and width, so that pictures of different
    resolutions show the same part of the scene. (A crop in pixels, which the original project used
    on its 512x384 pictures, would cut nothing from a picture of half that size.)
    """

    height: int = 128
    width: int = 96
    crop: tuple[float, float] = (1.0, 1.0)  # of (height, width), about the centre
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    interpolation: str = "bilinear"  # antialiased

    def __post_init__(self) -> None:
        sides = (self.height, self.width)
        if not all(isinstance(side, int) and MIN_SIDE <= side <= MAX_SIDE for side in sides):
            raise ConfigError(
                f"input size {self.height}x{self.width} (height x width): "
                f"each side must be from {MIN_SIDE} to {MAX_SIDE} pixels"
            )
        if len(self.crop) != 2 or not all(0 < part <= 1 for part in self.crop):
            raise ConfigError(
                f"crop {self.crop}: two fractions of height and width, above 0 and up to 1"
            )
        if (
            len(self.mean) != 3
            or len(self.std) != 3
            or not all(math.isfinite(value) for value in (*self.mean, *self.std))
            or not all(value > 0 for value in self.std)
        ):
            raise ConfigError(f"mean {self.mean}, std {self.std}: three values each, std above 0")
        if self.interpolation != "bilinear":
            raise ConfigError(f"interpolation {self.interpolation!r}: only 'bilinear' is known")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        return self.height, self.width

    def crop_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the centre crop of a picture, in whole pixels."""
        crop_height = max(1, round(height * self.crop[0]))
        crop_width = max(1, round(width * self.crop[1]))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        return left, top, left + crop_width, top + crop_height

    def resize(self, image: Image.Image) -> np.ndarray:
        """Upright `RGB` picture of any size → uint8 (height, width, 3), 0–255."""
        cropped = image.crop(self.crop_box(image.height, image.width))
        resized = cropped.resize((self.width, self.height), Image.Resampling.BILINEAR)
        return np.asarray(resized, dtype=np.uint8)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) → float32 (N, 3, H, W), zero mean and unit variance per channel."""
        mean = np.asarray(self.mean, dtype=np.float32)
        std = np.asarray(self.std, dtype=np.float32)
        scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PreprocessSpec:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: a missing or unknown key, or a value that does not fit.
        """
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        expected = [field.name for field in dataclasses.fields(cls)]
        if sorted(fields) != sorted(expected):
            raise ConfigError(f"preprocessing has keys {sorted(fields)}, not {sorted(expected)}")
        try:
            return cls(**fields)
        except (TypeError, OverflowError) as error:  # of a wrong type, or beyond any number
            raise ConfigError(f"preprocessing {fields!r}: {error}") from None
