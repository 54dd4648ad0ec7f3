"""Devices, precisions and the two steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from maskcls.data.augmentation import BaseAugmentation
from maskcls.data.loaders import Share
from maskcls.devices import Precision
from maskcls.errors import TrainingError
from maskcls.models import create_model
from maskcls.preprocessing import PreprocessSpec
from maskcls.training.engines import create_evaluator, create_trainer

CPU = torch.device("cpu")
FP32 = Precision("cpu", torch.float32)
SPEC = PreprocessSpec(height=32, width=32)


def batches(count: int = 23, size: int = 5, classes: int = 3) -> list[tuple[torch.Tensor, ...]]:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
    target = torch.from_numpy(rng.integers(0, classes, count))
    index = torch.arange(count)
    return list(zip(pixels.split(size), target.split(size), index.split(size), strict=True))


def trainer_of(model: nn.Module, criterion: nn.Module | None = None, **changes: Any) -> Engine:
    values: dict[str, Any] = {
        "precision": FP32,
        "share": Share(),
        "clip_norm": 0.0,
        "lr": 0.01,
        "scaler": torch.amp.GradScaler("cpu", enabled=False),
    } | changes
    return create_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=values.pop("lr")),
        criterion or nn.CrossEntropyLoss(),
        BaseAugmentation(SPEC),
        device=CPU,
        **values,
    )


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = create_model("base", 3, (32, 32))
    model.dropout.p = 0.0
    return model


def test_bf16_is_close_to_fp32() -> None:
    plain, coarse = network(), network()
    trainer_of(plain).run(batches(), max_epochs=1)
    trainer_of(coarse, precision=Precision("cpu", torch.bfloat16)).run(batches(), max_epochs=1)
    for one, other in zip(plain.parameters(), coarse.parameters(), strict=True):
        assert other.dtype == torch.float32  # only the computation is coarse
        torch.testing.assert_close(one, other, rtol=0.05, atol=2e-3)
    assert any(
        not torch.equal(one, other)
        for one, other in zip(plain.parameters(), coarse.parameters(), strict=True)
    )


def test_gradients_are_clipped_at_their_own_size() -> None:
    """Not at the size that keeps them in float16."""
    start, plain, scaled = network(), network(), network()
    scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=1024.0)
    trainer_of(plain, clip_norm=0.1).run(batches(), max_epochs=1)
    trainer_of(scaled, clip_norm=0.1, scaler=scaler).run(batches(), max_epochs=1)
    for one, other in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    moved = [
        float((one - first).detach().abs().max())
        for one, first in zip(plain.parameters(), start.parameters(), strict=True)
    ]
    assert max(moved) > 1e-4


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_a_batch_add_up_to_the_batch(parts: int) -> None:
    whole, split = network(), network()
    first = trainer_of(whole)
    second = trainer_of(split, share=Share(parts=parts))
    first.run(batches(), max_epochs=2)
    second.run(batches(), max_epochs=2)
    assert first.state.output["loss"] == pytest.approx(second.state.output["loss"], rel=1e-4)
    for one, other in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_parts_of_a_weighted_batch_add_up_to_the_batch() -> None:
    weights = torch.tensor([0.2, 1.0, 5.0])
    rows = [[0, 0, 0, 0, 2, 1], [2, 2, 2, 1, 1, 1]]  # parts of one class, where weights cancel out
    data = [
        (pixels, torch.tensor(row), torch.arange(6))
        for (pixels, *_), row in zip(batches(12, 6), rows, strict=True)
    ]
    whole, split = network(), network()
    for model, share in ((whole, Share()), (split, Share(parts=3))):
        criterion = nn.CrossEntropyLoss(weights)
        trainer_of(model, criterion, share=share, class_weights=weights).run(data, max_epochs=2)
    for one, other in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


class Small(nn.Module):
    """A network on a machine with memory for so many pictures at a time."""

    def __init__(self, pictures: int) -> None:
        super().__init__()
        self.network = network()
        self.pictures = pictures

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.pictures:
            torch.empty(10**15)  # the allocator's own error
        return self.network(images)


def test_out_of_memory_takes_smaller_parts_of_the_same_batch() -> None:
    said: list[str] = []
    data = batches(count=24, size=12)
    plain, small = network(), Small(4)
    first = trainer_of(plain, share=Share(parts=4))
    second = trainer_of(small, say=said.append)
    first.run(data, max_epochs=2)
    second.run(data, max_epochs=2)
    assert [line.partition(";")[0] for line in said] == [
        f"out of memory: batches of 12 are computed in {parts} parts from here on"
        for parts in (2, 4)
    ]
    assert first.state.output == second.state.output
    for one, other in zip(plain.parameters(), small.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_no_memory_for_two_pictures() -> None:
    model = Small(1)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(TrainingError, match="out of memory with 2 pictures at a time; take a"):
        trainer_of(model, say=lambda _: None).run(batches(count=8, size=8), max_epochs=1)
    for one, other in zip(before, model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_clipping_bounds_the_step() -> None:
    model = network()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    trainer_of(model, clip_norm=1e-3, lr=1.0).run(batches()[:1], max_epochs=1)
    moved = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    assert 0 < float(moved.norm()) <= 1.001e-3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_ends_it_before_the_step(value: float) -> None:
    class Broken(nn.Module):
        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return logits.sum() * value

    model = network()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(TrainingError, match=r"the loss is .*(nan|inf) at epoch 1, iteration 1; "):
        trainer_of(model, Broken()).run(batches(), max_epochs=1)
    for one, other in zip(before, model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_output_of_a_step() -> None:
    trainer = trainer_of(network())
    trainer.run(batches()[:1], max_epochs=1)
    assert set(trainer.state.output) == {"loss", "images"}
    assert trainer.state.output["images"] == 5
    assert type(trainer.state.output["loss"]) is float


def test_the_evaluator_sees_each_picture_once_and_changes_nothing() -> None:
    model = create_model("base", 3, (32, 32))
    before = [parameter.clone() for parameter in model.parameters()]
    evaluator = create_evaluator(model, BaseAugmentation(SPEC), device=CPU, precision=FP32)
    seen: list[int] = []
    logits: list[torch.Tensor] = []

    @evaluator.on(Events.ITERATION_COMPLETED)
    def collect(engine: Engine) -> None:
        seen.extend(engine.state.output["indices"].tolist())
        logits.append(engine.state.output["logits"])

    evaluator.run(batches())
    evaluator.run(batches())
    assert seen == [*range(23)] * 2
    assert not model.training
    assert torch.equal(torch.cat(logits[:5]), torch.cat(logits[5:]))  # no dropout
    pixels = torch.cat([batch[0] for batch in batches()]).numpy()
    model.eval()
    with torch.inference_mode():
        plain = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean()) / std()
        torch.testing.assert_close(torch.cat(logits[:5]), model(plain), rtol=1e-4, atol=1e-5)
    for one, other in zip(before, model.parameters(), strict=True):
        assert torch.equal(one, other)


def mean() -> torch.Tensor:
    return torch.tensor(SPEC.mean).view(1, 3, 1, 1)


def std() -> torch.Tensor:
    return torch.tensor(SPEC.std).view(1, 3, 1, 1)
