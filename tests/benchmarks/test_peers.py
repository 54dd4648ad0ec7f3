"""What the project is measured against is what other people run."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import efficientnet_pytorch
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers import original_network
from benchmarks.shared import start_workers_as_usual
from maskcls.models import create_model


@pytest.mark.parametrize("steps", [None, (2, 3, 2)])
def test_the_originals_network_is_the_packages(steps: tuple[int, ...] | None) -> None:
    torch.manual_seed(0)
    ours = create_model("efficientnet_b3", 3, (64, 50), steps).eval()
    plain = original_network(ours, (64, 50)).eval()
    assert type(plain) is efficientnet_pytorch.EfficientNet
    kinds = {type(module).__name__ for module in plain.modules()}
    assert {"MemoryEfficientSwish", "Conv2dStaticSamePadding"} <= kinds and "SiLU" not in kinds
    images = torch.randn(2, 3, 64, 50)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), ours(images), rtol=1e-4, atol=1e-5)


def test_another_network_is_the_same() -> None:
    network: nn.Module = create_model("resnet18", 3, (64, 48))
    assert original_network(network, (64, 48)) is network


def test_workers_start_as_they_do_in_a_script() -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, initializer=start_workers_as_usual) as pool:
        assert pool.apply(multiprocessing.get_start_method) == multiprocessing.get_start_method()
