"""Convolutions whose gradients are quick where a CPU trains in bfloat16.

What they answer is PyTorch's. Their gradients are, too, for most shapes; but for some, PyTorch's
kernels (oneDNN 3) take several times as long as another way to the same numbers, and most of a
training step: small outputs with many channels, as in the last stages of any network, and
depthwise convolutions with a stride or a 5x5 kernel. `benchmarks/convolutions.py` has the times.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_PRODUCT = 64
"""Positions (height x width) of an output up to which one product of matrices is quicker."""
_PIECES = 200
"""The same for 5x5 depthwise kernels, whose gradient is put together from 3x3 pieces."""

Pair = tuple[int, int]


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`, padded beforehand where efficientnet_pytorch asks for it."""

    def forward(self, images: Tensor) -> Tensor:
        if (padding := self._modules.get("static_padding")) is not None:
            images = padding(images)
        if not (
            images.is_cpu
            and torch.is_grad_enabled()
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
        ):
            return super().forward(images)
        given = (None if t is None else t.bfloat16() for t in (images, self.weight, self.bias))
        found: Tensor = _Convolution.apply(*given, self.stride, self.padding, self.groups)
        return found


def quicken(model: nn.Module) -> None:
    """Makes every convolution of a network a `Conv2d`, in place: parameters and names stay."""
    for module in model.modules():
        if (
            isinstance(module, nn.Conv2d)
            and module.dilation == (1, 1)
            and module.padding_mode == "zeros"
            and isinstance(module.padding, tuple)
        ):
            module.stride = tuple(module.stride)  # a list in efficientnet_pytorch
            module.__class__ = Conv2d


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.geometry = stride, padding, groups
        return F.conv2d(images, weight, bias, stride, padding, 1, groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        of_images, of_weight, of_bias = ctx.needs_input_grad[:3]
        geometry = ctx.geometry
        return (
            _of_images(gradient, images, weight, *geometry) if of_images else None,
            _of_weight(gradient, images, weight, *geometry) if of_weight else None,
            gradient.sum((0, 2, 3)) if of_bias else None,
            *(None for _ in geometry),
        )


def _of_images(
    gradient: Tensor, images: Tensor, weight: Tensor, stride: Pair, padding: Pair, groups: int
) -> Tensor:
    depthwise = _is_depthwise(weight, groups)
    kernel = weight.shape[2:]
    around = kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1]
    if stride == (1, 1) and min(around) >= 0 and (depthwise or _is_small(gradient, groups)):
        # A convolution itself, of the gradient with the kernel turned round.
        turned = weight.flip(2, 3)
        if depthwise:
            return F.conv2d(gradient, turned, None, 1, around, 1, groups)
        columns = _columns(gradient, kernel, stride, around, images.shape[2:])
        product = columns @ turned.permute(2, 3, 0, 1).reshape(-1, weight.shape[1])
        return product.view(len(images), *images.shape[2:], -1).permute(0, 3, 1, 2)
    dtype = torch.float32 if depthwise else gradient.dtype
    return _pytorch(gradient, images, weight, stride, padding, groups, dtype, (True, False))


def _of_weight(
    gradient: Tensor, images: Tensor, weight: Tensor, stride: Pair, padding: Pair, groups: int
) -> Tensor:
    kernel, positions = weight.shape[2:], gradient.shape[2:]
    if _is_small(gradient, groups):
        columns = _columns(images, kernel, stride, padding, positions)
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, len(weight))
        return (rows.t() @ columns).view(len(weight), *kernel, -1).permute(0, 3, 1, 2)
    dtype = gradient.dtype
    if _is_depthwise(weight, groups) and tuple(kernel) == (5, 5):
        if positions.numel() <= _PIECES:
            return _in_pieces(gradient, images, weight, stride, padding)
        dtype = torch.float32
    return _pytorch(gradient, images, weight, stride, padding, groups, dtype, (False, True))


def _is_depthwise(weight: Tensor, groups: int) -> bool:
    return groups == len(weight) and weight.shape[1] == 1 < groups


def _is_small(output: Tensor, groups: int) -> bool:
    return groups == 1 and output.shape[2:].numel() <= _PRODUCT


def _columns(
    images: Tensor, kernel: torch.Size, stride: Pair, padding: Pair, positions: torch.Size
) -> Tensor:
    """What each output position sees: (N x positions, kernel height x kernel width x channels)."""
    images = _padded(images, padding).permute(0, 2, 3, 1)
    high, wide = ((count - 1) * step + 1 for count, step in zip(positions, stride, strict=True))
    seen = [
        images[:, top : top + high : stride[0], left : left + wide : stride[1]]
        for top in range(kernel[0])
        for left in range(kernel[1])
    ]
    columns = seen[0] if len(seen) == 1 else torch.stack(seen, 3)
    return columns.reshape(len(images) * positions.numel(), -1)


def _in_pieces(
    gradient: Tensor, images: Tensor, weight: Tensor, stride: Pair, padding: Pair
) -> Tensor:
    """The gradient of a 5x5 depthwise kernel: its corners are 3x3 kernels, which oneDNN has quick
    code for; they overlap in the middle, where they agree."""
    images = _padded(images, padding)
    high, wide = (
        (count - 1) * step + 3 for count, step in zip(gradient.shape[2:], stride, strict=True)
    )
    found = torch.empty_like(weight)
    for top, left in itertools.product((0, 2), repeat=2):
        corner = (..., slice(top, top + 3), slice(left, left + 3))
        part = images[:, :, top : top + high, left : left + wide]
        found[corner] = _pytorch(
            gradient,
            part.contiguous(memory_format=torch.channels_last),
            weight[corner].contiguous(),
            stride,
            (0, 0),
            len(weight),
            gradient.dtype,
            (False, True),
        )
    return found


def _padded(images: Tensor, padding: Pair) -> Tensor:
    return (
        F.pad(images, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else images
    )


def _pytorch(
    gradient: Tensor,
    images: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    groups: int,
    dtype: torch.dtype,
    wanted: tuple[bool, bool],
) -> Tensor:
    """PyTorch's own gradient, computed in `dtype`: of the images or of the weight, as `wanted`."""
    found = torch.ops.aten.convolution_backward(
        gradient.to(dtype),
        images.to(dtype),
        weight.to(dtype),
        None,
        stride,
        padding,
        (1, 1),
        False,
        (0, 0),
        groups,
        (*wanted, False),
    )
    result: Tensor = found[wanted.index(True)]
    return result.to(gradient.dtype)
