"""A config is valid or a ConfigError, comes back from YAML as it went; its sources are ranked."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from maskcls import config as config_module
from maskcls.config import (
    AUGMENTATION_NAMES,
    CRITERION_NAMES,
    MODEL_NAMES,
    OPTION_FIELDS,
    PRESETS,
    TrainConfig,
    file_values,
    parse_criterion,
    read_yaml,
    resolve,
    to_yaml,
)
from maskcls.errors import ConfigError
from maskcls.labels import BRANCHES, TASKS

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))
FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}


def numbers(low: float, high: float, **bounds: bool) -> st.SearchStrategy[float]:
    return st.floats(low, high, **bounds)


# Without control characters: PyYAML itself writes U+0085 so that it reads a space.
texts = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=12)
# One strategy a field that has no `choices`; a field that is missing here fails the test below.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "data_dir": st.lists(texts, max_size=3).map(tuple),
    "model_dir": texts,
    "name": st.sampled_from(["exp", "exp2", "실험", "a b", "1", "null", "on"]),
    "fixes": st.none() | texts,
    "val_ratio": numbers(0, 1, exclude_min=True, exclude_max=True),
    "seed": st.integers(0, 2**31 - 1),
    "weights": texts,
    "height": st.integers(32, 2048),
    "width": st.integers(32, 2048),
    "crop": st.none() | st.tuples(*[numbers(0, 1, exclude_min=True)] * 2),
    "criterion": st.sampled_from([*CRITERION_NAMES, "cross_entropy:0.7,f1:0.3", "focal , f1:2"]),
    "focal_gamma": numbers(0, 10),
    "focal_alpha": st.none() | numbers(0, 10, exclude_min=True),
    "label_smoothing": numbers(0, 1, exclude_max=True),
    "rand_operations": st.integers(1, 10),
    "rand_magnitude": numbers(0, 30),
    "erasing": st.none() | numbers(0, 1),
    "mixup": numbers(0, 0.5),
    "cutmix": numbers(0, 0.5),
    "mix_rare": st.booleans(),
    "soften_age": numbers(0, 20),
    "auxiliary": numbers(0, 20),
    "class_weights": st.sampled_from(["none", "sqrt", "balanced"]) | texts,
    "lr": numbers(0, 99),
    "layer_decay": numbers(0, 1, exclude_min=True),
    "weight_decay": numbers(0, 10),
    "momentum": numbers(0, 1, exclude_max=True),
    "warmup_epochs": numbers(0, 10),
    "plateau_patience": st.integers(0, 50),
    "epochs": st.integers(1, 10**6),
    "patience": st.integers(0, 50),
    "batch_size": st.integers(16, 4096),
    "accumulate": st.integers(1, 8),
    "clip_norm": numbers(0, 10),
    "ema_decay": numbers(0, 1, exclude_max=True),
    "device": texts,
    "workers": st.integers(1, 256),
    "cache": texts,
    "strict": st.booleans(),
    "tracker": st.sampled_from(["none", "tensorboard", "mlflow , wandb", "clearml,tensorboard"]),
}


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    values = {
        name: draw(st.sampled_from(field.metadata["choices"]))
        if field.metadata["choices"]
        else draw(VALUES[name])
        for name, field in FIELDS.items()
        if name not in ("fold", "folds")
    }
    if draw(st.booleans()):
        values["folds"] = draw(st.integers(2, 10))
        values["fold"] = draw(st.integers(0, values["folds"] - 1))
    if values["border_ages"] == "soften":
        values["soften_age"] = 0.0
    if values["soften_age"] == 0 or values["task"] == "multi":
        values["age_loss"] = "distribution"
    return TrainConfig(**values)


# --- there and back ----------------------------------------------------------------------------


@given(configs())
@settings(max_examples=60)
def test_yaml_and_dict_round_trip(config: TrainConfig) -> None:
    assert TrainConfig.from_dict(config.to_dict()) == config
    again = TrainConfig.from_dict(yaml.safe_load(to_yaml(config)))
    assert again == config
    assert hash(again) == hash(config)  # tuples, not lists


@given(configs())
@settings(max_examples=20)
def test_a_written_file_resolves_to_itself(
    tmp_path_factory: pytest.TempPathFactory, config: TrainConfig
) -> None:
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert resolve(config.task, "scratch", read_yaml(file)) == config


def test_yaml_has_every_key_in_order() -> None:
    assert list(yaml.safe_load(to_yaml(TrainConfig()))) == list(FIELDS)


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("1", 1.0), ("1.5", 1.5), ("0", 0.0)])
def test_numbers_as_people_write_them_in_yaml(text: str, value: float) -> None:
    config = TrainConfig.from_dict(yaml.safe_load(f"weight_decay: {text}"))
    assert config.weight_decay == value
    assert type(config.weight_decay) is float


def test_one_data_folder_needs_no_list() -> None:
    assert TrainConfig.from_dict({"data_dir": "data"}).data_dir == ("data",)
    assert TrainConfig.from_dict({"data_dir": ["a", "b"]}).data_dir == ("a", "b")


def test_every_option_says_what_it_is() -> None:
    assert [field.name for field in OPTION_FIELDS] == [name for name in FIELDS if name != "task"]
    assert all(field.metadata["help"] for field in FIELDS.values())


# --- what is refused ---------------------------------------------------------------------------


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="key 'batchsize'; did you mean 'batch_size'"):
        TrainConfig.from_dict({"batchsize": 3})
    with pytest.raises(ConfigError, match="unknown key '3'"):
        TrainConfig.from_dict({3: 3})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("field", "value", "meant"),
    [
        ("model", "efficentnet_b3", "efficientnet_b3"),
        ("optimizer", "adamww", "adamw"),
        ("augmentation", "BestAugmentatio", "BestAugmentation"),
        ("task", "mask-gender", "mask_gender"),
        ("schedule", "cosin", "cosine"),
        ("precision", "bf6", "bf16"),
        ("criterion", "f1f", "f1"),
        ("criterion", "cross_entropy:0.5,focl:0.5", "focal"),
        ("tracker", "wand", "wandb"),
        ("tracker", "tensorboard,mflow", "mlflow"),
    ],
)
def test_unknown_value_names_the_nearest(field: str, value: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        TrainConfig.from_dict({field: value})


OUT_OF_RANGE = [
    ("val_ratio", 0.0),
    ("val_ratio", 1.0),
    ("label_smoothing", -0.1),
    ("rand_operations", 0),
    ("rand_operations", 11),
    ("rand_magnitude", -1.0),
    ("rand_magnitude", 30.5),
    ("erasing", -0.1),
    ("erasing", 1.1),
    ("mixup", -0.1),
    ("mixup", 1.1),
    ("cutmix", -0.1),
    ("cutmix", 1.1),
    ("soften_age", -1.0),
    ("soften_age", math.inf),
    ("auxiliary", -1.0),
    ("auxiliary", math.inf),
    ("label_smoothing", 1.0),
    ("focal_gamma", -1.0),
    ("focal_alpha", 0.0),
    ("lr", -1e-9),
    ("lr", 100.0),
    ("layer_decay", 0.0),
    ("layer_decay", 1.1),
    ("weight_decay", -0.1),
    ("momentum", 1.0),
    ("momentum", -0.1),
    ("warmup_epochs", -1.0),
    ("plateau_patience", -1),
    ("epochs", 0),
    ("patience", -1),
    ("batch_size", 1),
    ("batch_size", 0),
    ("accumulate", 0),
    ("accumulate", 33),  # of 64
    ("clip_norm", -1.0),
    ("ema_decay", 1.0),
    ("ema_decay", -0.1),
    ("workers", 0),
    ("workers", 257),
    ("seed", -1),
    ("seed", 2**31),
    ("name", "a/b"),
    ("name", "."),
    ("name", ".."),
    ("name", ""),
    ("height", 31),
    ("width", 2049),
    ("crop", (0.0, 1.0)),
    ("crop", (1.0, 1.1)),
    ("criterion", ""),
    ("criterion", "f1:0"),
    ("criterion", "f1:-1"),
    ("criterion", "f1:nan"),
    ("criterion", "f1:inf"),
    ("criterion", "f1:x"),
    ("criterion", "f1,f1"),
]


@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE)
def test_out_of_range_names_the_value(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{field: value})  # type: ignore[arg-type]
    assert str(value).strip("()") in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("val_ratio", 0.01), ("label_smoothing", 0.0), ("focal_gamma", 0.0), ("lr", 0.0)]
    + [("accumulate", 32), ("seed", 2**31 - 1), ("workers", 1), ("workers", 256), ("patience", 0)]
    + [("batch_size", 2), ("epochs", 1), ("height", 32), ("width", 2048), ("crop", (1.0, 1.0))],
)
def test_the_bounds_themselves_are_allowed(field: str, value: object) -> None:
    assert getattr(TrainConfig(**{field: value}), field) == value  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "folds",
    [
        {"fold": 0},
        {"fold": 0, "folds": 1},
        {"fold": 5, "folds": 5},
        {"fold": -1, "folds": 5},
    ],
)
def test_folds_that_do_not_fit(folds: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="fold"):
        TrainConfig(**folds)  # type: ignore[arg-type]


def test_a_label_is_softened_in_one_way() -> None:
    for ages in ("keep", "drop"):
        assert TrainConfig(border_ages=ages, soften_age=4.0).soften_age == 4.0
    assert TrainConfig(border_ages="soften").border_ages == "soften"
    with pytest.raises(ConfigError, match=r"border_ages soften and soften_age 4\.0: .*to 0, or"):
        TrainConfig(border_ages="soften", soften_age=4.0)


@pytest.mark.parametrize("loss", ["ordinal", "expected"])
def test_a_loss_of_ages_needs_ages(loss: str) -> None:
    assert TrainConfig(task="age", age_loss=loss, soften_age=4.0).age_loss == loss
    assert TrainConfig(task="mask_gender", age_loss=loss).age_loss == loss  # of --task all
    with pytest.raises(ConfigError, match=f"age_loss {loss}: needs soften_age above 0"):
        TrainConfig(task="age", age_loss=loss)
    with pytest.raises(ConfigError, match=f"age_loss {loss}: is of task age"):
        resolve("multi", "scratch", flags={"age_loss": loss})
    assert TrainConfig(task="multi", age_loss=loss, soften_age=4.0).age_loss == loss  # of old


NUMBERS = [name for name in FIELDS if type(FIELDS[name].default) is float] + [
    "focal_alpha",
    "erasing",
]


@pytest.mark.parametrize("value", [math.nan, math.inf, "nan", "inf", -math.inf])
@pytest.mark.parametrize("field", NUMBERS)
def test_a_number_is_finite(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        TrainConfig.from_dict({field: value})


@pytest.mark.parametrize("value", [(math.nan, 1.0), [math.nan, 1.0], ["nan", "1"]])
def test_a_crop_is_finite(value: Any) -> None:
    with pytest.raises(ConfigError, match="crop"):
        TrainConfig.from_dict({"crop": value})


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [{}, {"a": 1}, b"x", object(), [[1]], [None]])
def test_wrong_types_are_refused_and_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        TrainConfig.from_dict({field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 1.5),
        ("epochs", True),
        ("epochs", "3"),
        ("epochs", None),
        ("lr", "fast"),
        ("lr", True),
        ("lr", None),
        ("lr", 10**400),
        ("strict", "yes"),
        ("strict", 1),
        ("model", None),
        ("model", 3),
        ("task", None),
        ("task", 3),
        ("name", 3),
        ("data_dir", [1]),
        ("data_dir", None),
        ("crop", [1.0]),
        ("crop", [1.0, 1.0, 1.0]),
        ("crop", [True, 1.0]),
        ("crop", 0.5),
        ("crop", "0.5"),
        ("fold", 0.0),
    ],
)
def test_values_that_only_look_right(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        TrainConfig.from_dict({field: value})


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(list(FIELDS)) | st.text(max_size=5), json_like))
def test_random_values_are_a_config_or_a_config_error(values: dict[str, Any]) -> None:
    try:
        config = TrainConfig.from_dict(values)
    except ConfigError:
        return
    assert TrainConfig.from_dict(config.to_dict()) == config


# --- which value counts ------------------------------------------------------------------------


def test_flags_over_file_over_preset_over_default() -> None:
    assert TrainConfig().lr == 1e-3
    assert resolve("age", "imagenet").lr == 1e-5
    assert resolve("age", "imagenet", {"lr": 2e-5}).lr == 2e-5
    assert resolve("age", "imagenet", {"lr": 2e-5, "age": {"lr": 3e-5}}).lr == 3e-5
    assert resolve("age", "imagenet", {"age": {"lr": 3e-5}}, {"lr": 4e-5}).lr == 4e-5
    # and one that is not named elsewhere keeps its default
    assert resolve("age", "imagenet", {"lr": 2e-5}, {"epochs": 3}).momentum == 0.9


def test_a_section_counts_for_its_task_alone() -> None:
    file = {"epochs": 7, "age": {"epochs": 9}, "mask": {"lr": 0.5}}
    assert resolve("mask_gender", "scratch", file).epochs == 7
    assert resolve("age", "scratch", file).epochs == 9
    assert resolve("age", "scratch", file).lr != 0.5


def test_the_task_is_the_callers() -> None:
    assert resolve("age", "scratch", {"task": "mask"}).task == "age"
    assert resolve("age", "scratch", {"age": {"task": "mask"}}).task == "age"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"epoch": 3}, "config file: unknown key 'epoch'; did you mean 'epochs'"),
        ({"age": {"epoch": 3}}, "section age: unknown key 'epoch'"),
        ({"mask": {"epoch": 3}}, "section mask: unknown key"),  # of another task, all the same
        ({"age": 3}, "section age must hold keys"),
        ({"age": None}, "section age must hold keys"),
        ({"ages": {"epochs": 3}}, "unknown key 'ages'"),
    ],
)
def test_mistakes_in_a_file(file: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        file_values(file, "age")


def test_file_values_leaves_its_argument_as_it_was() -> None:
    file = {"task": "age", "age": {"epochs": 3}}
    file_values(file, "age")
    assert file == {"task": "age", "age": {"epochs": 3}}


# --- presets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("start", PRESETS)
def test_every_preset_resolves(start: str, task: str) -> None:
    config = resolve(task, start)
    assert config.task == task
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert 0 < config.lr


def test_imagenet_presets_are_the_originals_final_table() -> None:
    rows = {
        task: [
            getattr(resolve(task, "imagenet"), name)
            for name in ("model", "optimizer", "lr", "criterion", "epochs", "patience")
        ]
        for task in BRANCHES
    }
    assert rows == {
        "mask_gender": ["efficientnet_b3_init", "adamw", 1e-5, "cross_entropy", 30, 3],
        "age": ["efficientnet_b3", "adam", 1e-5, "cross_entropy", 20, 3],
    }


def test_presets_of_a_start_do_not_share_their_changes() -> None:
    before = PRESETS["scratch"]["mask"].copy()
    resolve("mask", "scratch", {"epochs": 99}, {"lr": 0.5})
    assert PRESETS["scratch"]["mask"] == before


# --- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
@pytest.mark.parametrize("task", TASKS)
def test_examples_load_for_every_task(path: Path, task: str) -> None:
    values = read_yaml(path)
    assert values
    config = resolve(task, "scratch", values)
    for key, value in file_values(values, task).items():
        shown = getattr(config, key)
        assert (list(shown) if isinstance(shown, tuple) else shown) == value


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize(
    "content",
    [
        b"- 1",
        b"3",
        b"a: [",
        b"\xff\xfe\xff",
        b"a: b: c",
        b"!!python/object/apply:os.system ['true']",
        b"lr: 2020-13-45",  # PyYAML takes it for a date, and raises a bare ValueError
        b"lr: " + b"9" * 5000,
        b"[" * 5000,
    ],
)
def test_files_that_are_no_config(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.yaml: No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_yaml(tmp_path)


def test_an_empty_file_is_an_empty_config(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}


# --- the choices are those of the registries ---------------------------------------------------


def test_choices_match_the_registries() -> None:
    from maskcls.data import augmentation
    from maskcls.losses import _CRITERIA
    from maskcls.models import MODELS

    assert tuple(MODELS) == MODEL_NAMES
    assert tuple(_CRITERIA) == CRITERION_NAMES
    assert tuple(augmentation._AUGMENTATIONS) == AUGMENTATION_NAMES
    assert set(config_module.DEFAULT_CROP) <= set(AUGMENTATION_NAMES)


def test_crop_comes_from_the_augmentation_unless_it_is_given() -> None:
    custom = TrainConfig(augmentation="CustomAugmentation")
    assert custom.preprocess().crop_box(512, 384) == (64, 96, 320, 416)  # 256 wide, 320 high
    assert TrainConfig().preprocess().crop == (1.0, 1.0)
    whole = TrainConfig(augmentation="CustomAugmentation", crop=(1.0, 1.0))
    assert whole.preprocess().crop == (1.0, 1.0)


def test_parse_criterion() -> None:
    assert parse_criterion("focal") == {"focal": 1.0}
    assert parse_criterion(" cross_entropy:0.7 , f1 : 3e-1") == {"cross_entropy": 0.7, "f1": 0.3}
