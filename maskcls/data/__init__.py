"""From folders of pictures to batches: profiles, checks, splits, cache, datasets, augmentation.

The names of the original project's `dataset.py` are here. They load when they are asked for: most
need PyTorch, and reading a folder's profiles does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskcls.data.augmentation import (
        AddGaussianNoise,
        BaseAugmentation,
        BestAugmentation,
        CustomAugmentation,
        RandAugmentation,
    )
    from maskcls.data.datasets import (
        AgeDataset,
        MaskBaseDataset,
        MaskGenderDataset,
        MaskSplitByProfileDataset,
        TestDataset,
    )
    from maskcls.images import is_image_file
    from maskcls.labels import AgeLabels, GenderLabels, MaskLabels

__all__ = [
    "AddGaussianNoise",
    "AgeDataset",
    "AgeLabels",
    "BaseAugmentation",
    "BestAugmentation",
    "CustomAugmentation",
    "GenderLabels",
    "MaskBaseDataset",
    "MaskGenderDataset",
    "MaskLabels",
    "MaskSplitByProfileDataset",
    "RandAugmentation",
    "TestDataset",
    "is_image_file",
]


def _home(name: str) -> str:
    """The module that defines a name."""
    if name == "is_image_file":
        return "maskcls.images"
    if name.endswith("Labels"):
        return "maskcls.labels"
    return f"maskcls.data.{'datasets' if name.endswith('Dataset') else 'augmentation'}"


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(_home(name)), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
