"""What throughput.py and training.py measure this project against: data sets and networks of other
people's code, put together as their users do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from efficientnet_pytorch import EfficientNet
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from maskcls.errors import MissingExtraError
from maskcls.preprocessing import MEAN, STD, PreprocessSpec

Transform = Callable[[Image.Image], Any]


class PillowPictures(Dataset[Tensor]):
    """Picture by picture: Pillow, then Resize, ToTensor and Normalize."""

    def __init__(self, paths: Sequence[Path], spec: PreprocessSpec) -> None:
        self.paths = paths
        self.spec = spec
        self.finish = v2.Compose(
            [
                v2.Resize(list(spec.size)),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(spec.mean), list(spec.std)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = Image.open(self.paths[index]).convert("RGB")
        box = self.spec.crop_box(image.height, image.width)
        answer: Tensor = self.finish(image.crop(box))
        return answer


class TensorPictures(Dataset[Tensor]):
    """torchvision's decoder and antialiased resize on uint8; normalised later, as a batch."""

    def __init__(self, paths: Sequence[Path], spec: PreprocessSpec) -> None:
        self.paths = [str(path) for path in paths]
        self.spec = spec

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = decode_image(self.paths[index], ImageReadMode.RGB)
        left, top, right, bottom = self.spec.crop_box(*image.shape[1:])
        cropped = image[:, top:bottom, left:right]
        return v2.functional.resize(cropped, list(self.spec.size), antialias=True)


class LabelledPictures(Dataset[tuple[Any, int]]):
    """Pillow and a transform, picture by picture, in every epoch."""

    def __init__(self, labelled: Sequence[tuple[Path, int]], transform: Transform) -> None:
        self.labelled = labelled
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.labelled[index]
        return self.transform(Image.open(path).convert("RGB")), label


def original_transforms(size: tuple[int, int]) -> tuple[Transform, Transform]:
    """The original's `CustomAugmentation` and `BaseAugmentation`: (training, validation).

    Without its crop, as nobody crops here, and with noise a tenth as strong as there, as ours has
    it: at full strength it hides what there is to learn.
    """
    finish = [
        v2.Resize(list(size)),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(MEAN), list(STD)),
    ]
    jitter = v2.ColorJitter(0.1, 0.1, 0.1, 0.1)
    noise = v2.GaussianNoise(sigma=0.1, clip=False)  # values are normalised, and below 0, too
    return v2.Compose([finish[0], jitter, *finish[1:], noise]), v2.Compose(finish)


def timm_transforms(size: tuple[int, int]) -> tuple[Transform, Transform]:
    """timm's own for a training from scratch, erasing included: (training, validation).

    Raises:
        MissingExtraError: without timm.
    """
    create_transform = import_timm().data.create_transform
    common = {"input_size": (3, *size), "mean": MEAN, "std": STD, "interpolation": "bilinear"}
    training = create_transform(
        **common, is_training=True, scale=(0.7, 1.0), color_jitter=0.25, re_prob=0.25
    )
    return training, create_transform(**common, crop_pct=1.0)


def original_network(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """A network of ours as its package computes it: efficientnet_pytorch's swish and padding, which
    ours does without."""
    if not isinstance(model, EfficientNet):
        return model
    plain: nn.Module = EfficientNet.from_name(model.version, image_size=size)
    plain._fc = model._fc
    plain.load_state_dict(model.state_dict())
    return plain


def classify(model: nn.Module, images: Tensor, tta: str) -> Tensor:
    """(N, C, H, W) → (N,) class indices, from the views of a picture that ours takes."""
    answers: Tensor = model(images)
    if tta == "flip":
        answers = answers.softmax(dim=1) + model(images.flip(-1)).softmax(dim=1)
    return answers.argmax(dim=1)


def create_peer(package: str, name: str, num_classes: int) -> nn.Module:
    """A network of timm or torchvision, with random weights.

    Raises:
        MissingExtraError: without timm.
    """
    if package == "torchvision":
        from torchvision.models import get_model

        return get_model(name, num_classes=num_classes)
    model: nn.Module = import_timm().create_model(name, num_classes=num_classes)
    return model


def import_timm() -> Any:
    """
    Raises:
        MissingExtraError: without timm.
    """
    try:
        import timm
        import timm.data
    except ImportError:
        raise MissingExtraError("timm", "bench", "the way of timm") from None
    return timm
