"""What tests of trainings share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from maskcls.checkpoints import read_checkpoint
from maskcls.manifest import Manifest


def assert_equal(one: Any, other: Any, where: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, Mapping):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}/{index}")
    else:
        assert one == other, where


@pytest.fixture(scope="session")
def assert_same_run() -> Callable[[Path, Path], None]:
    """Checkpoints, metrics and split of two run folders are equal bit for bit."""

    def check(folder: Path, reference: Path) -> None:
        for name in ("last.pt", "best.pt"):
            one, other = (read_checkpoint(path / name) for path in (folder, reference))
            # Without the config, which holds the paths.
            manifests = [Manifest.from_json(content.pop("manifest")) for content in (one, other)]
            assert manifests[0].metrics == manifests[1].metrics
            assert manifests[0].calibration == manifests[1].calibration
            assert_equal(one, other, name)
        for name in ("metrics.csv", "split.csv"):
            assert (folder / name).read_bytes() == (reference / name).read_bytes()

    return check
