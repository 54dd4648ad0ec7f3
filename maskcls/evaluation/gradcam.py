"""Where a network looked: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def grad_cam(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Which regions raised the logit of a class: float32 (N, H, W), 0..1, each picture by itself.

    images: normalised (N, 3, H, W). classes: (N,), whose logit counts. The feature maps are those
    of the last module that answers maps of more than one position, before the average over
    positions. A picture in which nothing speaks for its class is 0 everywhere. The network is in
    evaluation mode meanwhile, and left as it was.

    Raises:
        ValueError: the network has no feature maps.
    """
    maps: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
            maps[:] = [output]  # only the last one is needed, the others may go

    leaves = [
        module
        for module in model.modules()
        # VGG's spreads a single position over 7x7 again.
        if not any(module.children()) and not isinstance(module, nn.AdaptiveAvgPool2d)
    ]
    modes = [(module, module.training) for module in model.modules()]
    hooks = [module.register_forward_hook(keep) for module in leaves]
    try:
        model.eval()
        # A leaf of its own: a gradient reaches the maps even where all weights are frozen.
        with torch.inference_mode(False), torch.enable_grad():
            logits = model(images.detach().clone().requires_grad_())
            if not maps:
                raise ValueError(f"{type(model).__name__} has no feature maps to look at")
            [features] = maps
            chosen = logits.gather(1, classes.view(-1, 1).to(logits.device)).sum()
            [gradient] = torch.autograd.grad(chosen, features)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    weights = gradient.float().mean(dim=(2, 3), keepdim=True)
    heat = (weights * features.detach().float()).sum(dim=1, keepdim=True).relu()
    heat = nn.functional.interpolate(
        heat, size=images.shape[2:], mode="bilinear", align_corners=False
    )[:, 0]
    peak = heat.amax(dim=(1, 2), keepdim=True)
    return (heat / peak.where(peak > 0, 1.0)).clamp(0, 1)
