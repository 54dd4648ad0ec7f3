"""Batch normalisation over the pictures of all processes, on CPUs: torch's own needs CUDA."""

from __future__ import annotations

from typing import Any

import ignite.distributed as idist
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Normalises the own pictures with mean and variance of those of all processes. When it
    evaluates, it is what it derives from."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        # Otherwise there are no running averages, or they are means over all steps.
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        output: Tensor
        output, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return output


def share_statistics(model: nn.Module) -> None:
    """Batch normalisation of a network becomes that over the pictures of all processes, in place:
    parameters, buffers and their names stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d


class _Normalise(torch.autograd.Function):
    """(N, C, H, W) → the same, normalised; mean (C,), variance (C,) and how many values each is of.

    One exchange of 2 C + 1 numbers forward, and one of 2 C backward.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # The kernel also moves averages, by a step of 0.0: those of the own pictures are none.
        own = torch.batch_norm_update_stats(x, torch.zeros_like(bias), torch.ones_like(bias), 0.0)
        count = torch.full_like(bias[:1], x.numel() // len(bias))
        found: Tensor = idist.all_gather(torch.cat([*own, count]))  # type: ignore[assignment]
        means, variances, counts = torch.split(
            found.view(-1, 2 * len(bias) + 1), [len(bias), len(bias), 1], dim=1
        )
        total = counts.sum()
        shares = counts / total
        mean = (means * shares).sum(0)
        variance = ((variances + (means - mean).square()) * shares).sum(0)
        ctx.save_for_backward(x, weight, mean, variance, total)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, total)
        output = nn.functional.batch_norm(x, mean, variance, weight, bias, eps=eps)
        return output, mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, total = ctx.saved_tensors
        # As if mean and variance were constant; then what the output owes to them.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums: Tensor = idist.all_reduce(torch.cat([grad_weight, grad_bias]))  # type: ignore[assignment]
        of_scale, of_shift = torch.split(sums / total, len(weight))
        deviation = torch.rsqrt(variance + ctx.eps)
        slope = weight * deviation.square() * of_scale
        shift = weight * deviation * of_shift - slope * mean
        owed = torch.addcmul(shift.view(1, -1, 1, 1), x, slope.view(1, -1, 1, 1))
        return grad_x.sub_(owed), grad_weight, grad_bias, None
