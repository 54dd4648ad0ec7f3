"""`PreprocessSpec`: what it refuses, its crop, its resize and its normalisation."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskcls.errors import ConfigError
from maskcls.preprocessing import MAX_SIDE, MIN_SIDE, PreprocessSpec

sides = st.integers(MIN_SIDE, MAX_SIDE)
fractions = st.floats(0, 1, exclude_min=True)
finite = st.floats(-10, 10)
positive = st.floats(1e-3, 10)
specs = st.builds(
    PreprocessSpec,
    height=sides,
    width=sides,
    crop=st.tuples(fractions, fractions),
    mean=st.tuples(finite, finite, finite),
    std=st.tuples(positive, positive, positive),
)


@given(specs)
def test_round_trip_through_json(spec: PreprocessSpec) -> None:
    assert PreprocessSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@given(st.tuples(fractions, fractions), st.integers(1, 5000), st.integers(1, 5000))
def test_the_crop_lies_inside_and_in_the_middle(
    crop: tuple[float, float], height: int, width: int
) -> None:
    left, top, right, bottom = PreprocessSpec(crop=crop).crop_box(height, width)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert 0 <= (width - right) - left <= 1
    assert 0 <= (height - bottom) - top <= 1


def test_the_crop_is_a_fraction_of_the_picture() -> None:
    spec = PreprocessSpec(crop=(0.625, 2 / 3))
    assert spec.crop_box(512, 384) == (64, 96, 320, 416)
    assert spec.crop_box(256, 192) == (32, 48, 160, 208)


@pytest.mark.parametrize("crop", [(1.0, 1.0), (0.7, 0.5)])
def test_resize_is_that_of_pillow(crop: tuple[float, float]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (201, 151, 3), dtype=np.uint8)
    spec = PreprocessSpec(height=64, width=48, crop=crop)
    left, top, right, bottom = spec.crop_box(201, 151)
    part = Image.fromarray(pixels[top:bottom, left:right])
    expected = np.asarray(part.resize((48, 64), Image.Resampling.BILINEAR))
    resized = spec.resize(Image.fromarray(pixels))
    assert resized.dtype == np.uint8
    assert resized.shape == (*spec.size, 3)
    assert np.array_equal(resized, expected)


def test_normalise() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    spec = PreprocessSpec()
    normalised = spec.normalise(pixels)
    assert normalised.dtype == np.float32
    assert normalised.shape == (2, 3, 5, 4)
    assert normalised.flags.c_contiguous
    for channel in range(3):
        expected = (pixels[..., channel] / 255 - spec.mean[channel]) / spec.std[channel]
        assert np.allclose(normalised[:, channel], expected, atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        {"height": MIN_SIDE - 1},
        {"width": MAX_SIDE + 1},
        {"crop": (0.0, 1.0)},
        {"crop": (1.0, 1.1)},
        {"crop": (float("nan"), 1.0)},
        {"crop": (1.0,)},
        {"mean": (0.5, 0.5)},
        {"std": (0.2, 0.0, 0.2)},
        {"std": (0.2, -0.2, 0.2)},
        {"interpolation": "bicubic"},
    ],
)
def test_bad_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="size|crop|std|interpolation"):
        PreprocessSpec(**values)


def test_from_dict_refuses_unknown_keys() -> None:
    with pytest.raises(ConfigError, match="zoom"):
        PreprocessSpec.from_dict(PreprocessSpec().to_dict() | {"zoom": 2})
