"""The names of the original project are importable where its users look for them."""

import importlib

import pytest

NAMES = {
    "maskcls.labels": "MaskLabels GenderLabels AgeLabels",
    "maskcls.data": "is_image_file MaskLabels GenderLabels AgeLabels MaskBaseDataset "
    "MaskSplitByProfileDataset TestDataset MaskGenderDataset AgeDataset BaseAugmentation "
    "AddGaussianNoise CustomAugmentation BestAugmentation",
    "maskcls.losses": "FocalLoss LabelSmoothingLoss F1Loss criterion_entrypoint is_criterion "
    "create_criterion",
    "maskcls.models": "BaseModel EfficientNetB3 EfficientNetB4 EfficientNetB5 EfficientNetB3_init "
    "ResNet34 ResNext50 ResNext101 Vgg19 load_model",
    "maskcls.training": "seed_everything get_lr grid_image increment_path train",
    "maskcls.runtime": "inference",
    "maskcls.evaluation": "read_answers score_answers",
}


@pytest.mark.parametrize("module", NAMES)
def test_the_names_of_the_original_are_there(module: str) -> None:
    loaded = importlib.import_module(module)
    for name in NAMES[module].split():
        assert callable(getattr(loaded, name)), name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'MaskDataset'"):
        _ = importlib.import_module("maskcls.data").MaskDataset


def test_all_of_data_is_there() -> None:
    data = importlib.import_module("maskcls.data")
    assert {name for name in data.__all__ if getattr(data, name).__name__ != name} == set()
