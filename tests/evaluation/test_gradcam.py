"""Grad-CAM against its closed form, and on a network of which it is known where it looks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskcls.config import MODEL_NAMES
from maskcls.evaluation.gradcam import grad_cam
from maskcls.models import channels_last, create_model

SLOW = {"resnext101", "vgg19", "efficientnet_b4", "efficientnet_b5"}
SIZE = (64, 48)


def pictures(count: int = 2, size: tuple[int, int] = SIZE) -> Tensor:
    coarse = torch.randn(count, 3, 4, 3, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size, mode="bilinear")


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


class Colours(nn.Module):
    """Red speaks for class 1, green for class 0, wherever they are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.conv.weight.data = torch.eye(3)[:2].reshape(2, 3, 1, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(2, 2, bias=False)
        self.fc.weight.data = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.relu(self.conv(images)).mean(dim=(2, 3)))
        return logits


def test_it_lights_up_where_the_decision_is_made() -> None:
    images = torch.zeros(2, 3, 16, 16)
    images[:, 1] = 1  # green, but for one quadrant, which is red
    images[0, :, :8, :8] = torch.tensor([1.0, 0, 0])[:, None, None]
    images[1, :, 8:, 8:] = torch.tensor([1.0, 0, 0])[:, None, None]
    red = images[:, 0]
    assert torch.equal(grad_cam(Colours(), images, torch.tensor([1, 1])), red)
    assert torch.equal(grad_cam(Colours(), images, torch.tensor([0, 0])), 1 - red)


def test_nothing_that_speaks_for_a_class_is_0_everywhere() -> None:
    green = torch.zeros(1, 3, 16, 16)
    green[:, 1] = 1
    heat = grad_cam(Colours(), green, torch.tensor([1]))
    assert torch.equal(heat, torch.zeros(1, 16, 16))


def test_before_an_average_it_is_the_class_activation_map() -> None:
    """Selvaraju et al. 2017, section 3.1: Zhou et al.'s map, of which nothing is differentiated."""
    torch.manual_seed(0)
    model = create_model("resnet18", 6, SIZE).eval()
    images, classes = pictures(3, (128, 96)), torch.tensor([1, 1, 1])
    with torch.no_grad():
        maps = nn.Sequential(*list(model.children())[:-2])(images)
        weights = model.get_parameter("fc.weight")[classes]
        heat = torch.einsum("nc,nchw->nhw", weights, maps).relu()[:, None]
        heat = nn.functional.interpolate(heat, (128, 96), mode="bilinear")[:, 0]
    expected = heat / heat.amax(dim=(1, 2), keepdim=True)
    assert (expected.flatten(1).std(dim=1) > 0.1).all()
    torch.testing.assert_close(grad_cam(model, images, classes), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in MODEL_NAMES],
)
def test_every_network_shows_where_it_looked(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, 3, SIZE).train()
    model.get_submodule(next(iter(dict(model.named_children())))).eval()  # a mixed state
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = pictures()
    heat = grad_cam(model, images, torch.tensor([0, 2]))
    assert heat.shape == (2, *SIZE)
    assert heat.dtype == torch.float32
    assert torch.isfinite(heat).all()
    assert heat.min() >= 0
    assert heat.max() <= 1
    assert not heat.requires_grad
    assert hooks_of(model) == 0
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not images.requires_grad


@pytest.mark.parametrize("name", ["base", "resnet18"])
def test_the_memory_layout_and_frozen_weights_change_nothing(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, 3, SIZE).eval()
    images, classes = pictures(2, (128, 96)), torch.tensor([1, 1])
    expected = grad_cam(model, images, classes)
    assert expected.amax(dim=(1, 2)).tolist() == [1, 1]
    frozen = channels_last(model.requires_grad_(False))
    with torch.inference_mode():
        heat = grad_cam(frozen, images.contiguous(memory_format=torch.channels_last), classes)
    torch.testing.assert_close(heat, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("steps", [(2, 3, 1)])
def test_classes_learnt_in_steps(steps: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = create_model("base", 3, SIZE, steps=steps, auxiliary=2)
    heat = grad_cam(model, pictures(), torch.tensor([0, 2]))
    assert heat.shape == (2, *SIZE)
    assert heat.amax() > 0


def test_a_network_that_fails_keeps_no_hook() -> None:
    model = Colours().train()
    with pytest.raises(RuntimeError):
        grad_cam(model, torch.zeros(1, 5, 8, 8), torch.tensor([0]))
    assert hooks_of(model) == 0
    assert model.training
    with pytest.raises(ValueError, match="Sequential has no feature maps"):
        grad_cam(
            nn.Sequential(nn.Flatten(), nn.Linear(48, 2)),
            torch.zeros(1, 3, 4, 4),
            torch.zeros(1).long(),
        )
