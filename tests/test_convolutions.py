"""Convolutions answer as PyTorch's do, and their gradients in bfloat16 are those of float32."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from maskcls.convolutions import Conv2d, quicken
from maskcls.models import MODELS, create_model


def gradients(conv: nn.Module, images: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    images = images.clone().requires_grad_()
    conv.zero_grad()
    conv(images).backward(gradient)
    assert images.grad is not None
    return {"images": images.grad} | {k: p.grad for k, p in conv.named_parameters()}


def check(conv: nn.Conv2d, images: Tensor) -> None:
    """`conv` in bfloat16 against the same numbers in float32."""
    quick = nn.Sequential(copy.deepcopy(conv))
    quicken(quick)
    assert type(quick[0]) is Conv2d
    images = images.bfloat16().contiguous(memory_format=torch.channels_last)
    exact = copy.deepcopy(conv)
    for parameter in exact.parameters():
        parameter.data = parameter.data.bfloat16().float()
    with torch.autocast("cpu", torch.bfloat16):
        answer = quick(images)
        assert torch.equal(answer, conv(images)) and answer.dtype == torch.bfloat16
        gradient = torch.randn_like(answer)
        found = gradients(quick, images, gradient)
        usual = gradients(conv, images, gradient)
    wanted = gradients(exact, images.float(), gradient.float())
    for name, value in wanted.items():
        close = found[name.replace("weight", "0.weight").replace("bias", "0.bias")]
        assert close.shape == value.shape
        # bfloat16 keeps eight bits, and rounds what was added up in float32 once or twice. PyTorch
        # itself rounds more often on a CPU that has neither bfloat16 nor AVX-512.
        worst, allowed = (
            (one.float() - value).abs().max() / value.abs().max() for one in (close, usual[name])
        )
        assert worst <= max(2**-7, allowed), name


@settings(max_examples=60)
@given(
    kernel=st.tuples(*[st.sampled_from([1, 2, 3, 5, 7])] * 2),
    stride=st.tuples(*[st.integers(1, 3)] * 2),
    padding=st.tuples(*[st.integers(0, 4)] * 2),
    size=st.tuples(*[st.integers(7, 20)] * 2),
    groups=st.sampled_from(["one", "two", "depthwise", "multiplied"]),
    bias=st.booleans(),
)
def test_gradients_are_those_of_float32(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    size: tuple[int, int],
    groups: str,
    bias: bool,
) -> None:
    torch.manual_seed(0)
    channels = 8
    count = {"one": 1, "two": 2, "depthwise": channels, "multiplied": channels}[groups]
    out = 16 if groups == "multiplied" else channels
    conv = nn.Conv2d(channels, out, kernel, stride, padding, groups=count, bias=bias)
    check(conv, torch.randn(3, channels, *size))


@pytest.mark.parametrize("size", [(4, 3), (16, 12), (32, 24)])  # each way through
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_efficientnets_depthwise_kernels(size: tuple[int, int], stride: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(48, 48, 5, stride, 2, groups=48, bias=False)
    check(conv, torch.randn(4, 48, *size))


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("efficientnet_b4", "resnext101")])
def test_every_convolution_of_every_network(name: str) -> None:
    model = create_model(name, 3, (64, 48))
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert convs and all(type(conv) is Conv2d for conv in convs)
    assert all(type(conv.stride) is type(conv.padding) is tuple for conv in convs)
    calls = []
    for conv in convs:
        conv.register_forward_hook(lambda _, __, answer: calls.append(answer.grad_fn.name()))
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(torch.randn(2, 3, 64, 48))
    assert calls and set(calls) == {"_ConvolutionBackward"}


def test_other_precisions_are_pytorchs_own() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    quick = nn.Sequential(copy.deepcopy(conv))
    quicken(quick)
    images = torch.randn(2, 8, 4, 3)
    answer = quick(images)
    assert torch.equal(answer, conv(images)) and answer.grad_fn.name() == "ConvolutionBackward0"
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(quick(images), conv(images))


def test_dilated_ones_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, padding="same"))
    quicken(model)
    assert [type(module) for module in model] == [nn.Conv2d, nn.Conv2d]
