"""Two networks of a few bytes, and pictures that they tell apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.runtime.test_session import network


@pytest.fixture
def networks(tmp_path: Path) -> list[str]:
    """The paths of two ONNX files that together answer everything."""
    files = []
    for task in ("mask_gender", "age"):
        onnx.save(network(task), tmp_path / f"{task}.onnx")
        files.append(str(tmp_path / f"{task}.onnx"))
    return files


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 21 pictures, two of which cannot be read; some have Korean names."""
    folder = tmp_path / "photos"
    folder.mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (21, 3, 2, 3), dtype=np.uint8)
    for index, pixels in enumerate(colours):
        name = f"{index:02}.png" if index % 3 else f"{index:02} 얼굴, 가.png"
        Image.fromarray(pixels).resize((30, 40)).save(folder / name)
    (folder / "05.png").write_bytes(b"bad")
    (folder / "20.png").write_bytes(b"")
    return folder
