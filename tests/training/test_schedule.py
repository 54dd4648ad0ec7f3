"""The learning rate, step by step, and what decays."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from maskcls.config import MODEL_NAMES, resolve
from maskcls.models import create_model
from maskcls.training.schedule import Schedule, create_optimizer, get_lr, network_layers

PEAK, STEPS = 0.5, 10  # steps per epoch


def make(**flags: object) -> tuple[torch.optim.Optimizer, Schedule]:
    values = {"lr": PEAK, "epochs": 4, "warmup_epochs": 0.5} | flags
    config = resolve("age", "scratch", flags={"optimizer": "sgd", **values})
    optimizer = create_optimizer(nn.Linear(2, 2), config)
    return optimizer, Schedule(optimizer, config, STEPS)


def cosine(step: int, warmup: int, total: int) -> float:
    if step <= warmup:
        return PEAK * step / warmup
    return PEAK / 2 * (1 + math.cos(math.pi * (step - 1 - warmup) / (total - warmup)))


@pytest.mark.parametrize("warmup_epochs", [0.0, 0.5, 1.0, 4.0, 100.0])
def test_warm_up_is_linear_and_the_cosine_ends_near_zero(warmup_epochs: float) -> None:
    optimizer, schedule = make(schedule="cosine", warmup_epochs=warmup_epochs)
    warmup = min(int(warmup_epochs * STEPS), 4 * STEPS)
    rates = []
    for step in range(1, 4 * STEPS + 1):
        schedule.set_rate(step)
        rates.append(get_lr(optimizer))
        assert rates[-1] == pytest.approx(cosine(step, warmup, 4 * STEPS))
    assert max(rates) == pytest.approx(PEAK)
    assert all(rate > 0 for rate in rates)
    if warmup < 4 * STEPS:
        assert rates[-1] < PEAK / 100
        assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_every_group_has_the_rate() -> None:
    optimizer, schedule = make()
    schedule.set_rate(3)
    assert {group["lr"] for group in optimizer.param_groups} == {PEAK * 3 / 5}


def test_constant_stays_whatever_the_score() -> None:
    _, schedule = make(schedule="constant", warmup_epochs=0.0)
    for _ in range(5):
        schedule.epoch_ended(0.0)
    assert {schedule.rate(step) for step in range(1, 41)} == {PEAK}


@pytest.mark.parametrize(
    ("patience", "scores", "plateaus"),
    [
        (1, [0.1, 0.2, 0.3, 0.4], [0, 0, 0, 0]),
        (1, [0.4, 0.4, 0.4, 0.4, 0.4], [0, 0, 1, 1, 2]),  # an equal score is no better one
        (0, [0.4, 0.3, 0.5, 0.4, 0.4], [0, 1, 1, 2, 3]),
        (1, [math.nan, math.nan, 0.1, 0.2], [0, 1, 1, 1]),
        (1, [-math.inf, -math.inf, 0.1], [0, 1, 1]),
        (2, [0.4, 0.1, 0.1, 0.5, 0.1, 0.1, 0.1], [0, 0, 0, 0, 0, 0, 1]),
    ],
)
def test_a_plateau_divides_the_rate_by_ten(
    patience: int, scores: list[float], plateaus: list[int]
) -> None:
    _, schedule = make(schedule="plateau", plateau_patience=patience, warmup_epochs=0.0)
    for score, count in zip(scores, plateaus, strict=True):
        schedule.epoch_ended(score)
        assert schedule.rate(7) == pytest.approx(PEAK / 10**count)


def test_state_round_trip() -> None:
    _, schedule = make(schedule="plateau", plateau_patience=1)
    scores = [0.5, 0.4, 0.4, 0.4, 0.6, 0.1, 0.1]
    for half in range(len(scores) + 1):
        _, first = make(schedule="plateau", plateau_patience=1)
        _, second = make(schedule="plateau", plateau_patience=1)
        for score in scores[:half]:
            first.epoch_ended(score)
        second.load_state_dict(first.state_dict())
        for score in scores[half:]:
            second.epoch_ended(score)
        if half == 0:
            schedule = second
        assert second.state_dict() == schedule.state_dict()
        assert [second.rate(step) for step in (1, 9, 33)] == [
            schedule.rate(step) for step in (1, 9, 33)
        ]


@pytest.mark.parametrize("name", ["base", "resnet18", "efficientnet_b3"])
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_biases_and_norms_do_not_decay(name: str, optimizer: str) -> None:
    model = create_model(name, 3, (32, 32))
    config = resolve("age", "scratch", flags={"optimizer": optimizer, "weight_decay": 0.25})
    decay = {
        id(parameter): group["weight_decay"]
        for group in create_optimizer(model, config).param_groups
        for parameter in group["params"]
    }
    norms = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    count = 0
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            free = key == "bias" or isinstance(module, norms)
            assert decay[id(parameter)] == (0.0 if free else 0.25)
            count += 1
    assert count == len(decay)


def test_the_optimiser_is_the_one_of_the_config() -> None:
    model = nn.Linear(2, 2)
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    for name, kind in kinds.items():
        config = resolve("age", "scratch", flags={"optimizer": name, "momentum": 0.0, "lr": 0.125})
        optimizer = create_optimizer(model, config)
        assert type(optimizer) is kind
        assert get_lr(optimizer) == 0.125


# --- a rate for each layer ---------------------------------------------------------------------

FIRST_AND_LAST = {
    "base": ("conv1", "fc", 4),
    "resnet18": ("conv1", "fc", 2 + 8),
    "resnet34": ("conv1", "fc", 2 + 16),
    "resnext50": ("conv1", "fc", 2 + 16),
    "resnext101": ("conv1", "fc", 2 + 33),
    "efficientnet_b3": ("_conv_stem", "_fc", 3 + 26),
    "efficientnet_b3_init": ("_conv_stem", "_fc", 3 + 26),
    "efficientnet_b4": ("_conv_stem", "_fc", 3 + 32),
    "efficientnet_b5": ("_conv_stem", "_fc", 3 + 39),
    "vgg19": ("features.0", "classifier.6", 16 + 3),
}
"""First and last layer, and how many: of what the papers count, blocks as one."""


def small_network(name: str) -> nn.Module:
    with torch.device("meta"):  # nothing is computed: VGG19 alone would take 560 MB
        return create_model(name, 3, (32, 32), steps=(2, 3, 1), auxiliary=4)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_layers_hold_every_parameter_once_in_the_order_of_the_network(name: str) -> None:
    model = small_network(name)
    layers = network_layers(model)
    first, last, count = FIRST_AND_LAST[name]
    assert len(layers) == count
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    found = [names[id(parameter)] for layer in layers for parameter in layer]
    assert found == [key for key, _ in model.named_parameters()]
    assert names[id(layers[0][0])] == f"{first}.weight"
    assert {names[id(p)] for p in layers[-1]} == {f"{last}.weight", f"{last}.bias"}


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_rates_fall_from_the_classifier_to_the_pictures(name: str) -> None:
    model = small_network(name)
    flags = {"layer_decay": 0.5, "lr": PEAK, "optimizer": "sgd", "weight_decay": 0.25}
    flags |= {"schedule": "cosine", "warmup_epochs": 0.5, "epochs": 4}
    config = resolve("age", "scratch", flags=flags)
    optimizer = create_optimizer(model, config)
    schedule = Schedule(optimizer, config, STEPS)
    for step in (1, 3, 17):
        schedule.set_rate(step)
        rates = {
            id(parameter): group["lr"]
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        layers = network_layers(model)[::-1]
        assert len(rates) == sum(map(len, layers)) == len(list(model.parameters()))
        for depth, layer in enumerate(layers):
            expected = schedule.rate(step) * 0.5**depth
            assert [rates[id(p)] for p in layer] == pytest.approx([expected] * len(layer))
        assert get_lr(optimizer) == schedule.rate(step) > 0  # what the log shows
    for group in optimizer.param_groups:
        assert {p.ndim > 1 for p in group["params"]} <= {group["weight_decay"] == 0.25}


def test_without_layers_there_are_two_groups_and_an_older_state_loads() -> None:
    optimizer, schedule = make()
    assert len(optimizer.param_groups) == 2
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["lr_scale"]  # as it was before
    optimizer.load_state_dict(state)
    schedule.set_rate(3)
    assert {group["lr"] for group in optimizer.param_groups} == {PEAK * 3 / 5}
