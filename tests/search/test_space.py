"""Space files: what they come to, and which line is wrong."""

from __future__ import annotations

import pytest

from maskcls.config import PRESETS, resolve
from maskcls.errors import ConfigError
from maskcls.labels import TASKS
from maskcls.search.space import Choices, Range, default_space, parse_space

BASE = resolve("age", "scratch")

SPACE = """\
lr: {low: 5e-4, high: 0.01, log: true}
mixup: {low: 0, high: 3e-1, step: 1e-1}
epochs: {low: 6, high: 12, step: 3}
batch_size: {low: 16, high: 64}
class_weights: [none, sqrt]
crop: [[0.8, 1], [1.0, 1.0], null]
mix_rare: [true, false]
"""


def test_a_space_has_the_types_of_the_config() -> None:
    space = parse_space(SPACE, BASE, "space.yaml")
    assert space == {
        "lr": Range(5e-4, 0.01, log=True),
        "mixup": Range(0.0, 0.3, step=0.1),
        "epochs": Range(6, 12, step=3),
        "batch_size": Range(16, 64),
        "class_weights": Choices(("none", "sqrt")),
        "crop": Choices(((0.8, 1.0), (1.0, 1.0), None)),
        "mix_rare": Choices((True, False)),
    }
    whole = {key for key, found in space.items() if isinstance(found, Range) and found.whole}
    assert whole == {"epochs", "batch_size"}


def test_what_a_trial_can_have() -> None:
    space = parse_space(SPACE, BASE, "space.yaml")
    held = {"lr": 0.002, "mixup": 0.3, "epochs": 9, "class_weights": "none", "crop": (1.0, 1.0)}
    assert all(space[key].holds(value) for key, value in held.items())
    outside = {"lr": 0.02, "mixup": 0.25, "epochs": 10, "class_weights": "balanced", "crop": "x"}
    assert not any(space[key].holds(value) for key, value in outside.items())
    assert not space["lr"].holds(None)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("lr: {low: 0.1, high: 0.01}", 1, "lr: low 0.1 must be below high 0.01"),
        ("\n# rate\nlr: {low: 0, high: 1, log: true}", 3, "low 0.0 must be above 0 with log"),
        ("lr: {low: 0.1, high: 0.2}\nlearn: [1, 2]", 2, "unknown key 'learn'"),
        ("lr: {low: 0.1, high: 0.2}\nlr: {low: 0.1, high: 0.3}", 2, "lr is there twice"),
        ("lr: {low: 0.1, hi: 0.2}", 1, "lr: unknown key 'hi'; did you mean 'high'?"),
        ("lr: {low: 0.1}", 1, "lr: has no high"),
        ("lr: {low: 0.1, high: fast}", 1, "lr 'fast': must be float"),
        ("lr: {low: 0.1, high: 200}", 1, "lr 200.0: must be from 0 to below 100"),
        ("lr: {low: 0.1, high: .inf}", 1, "lr inf: must be float"),
        ("lr: {low: 0.1, high: 0.2, log: 3}", 1, "log 3 must be true or false"),
        ("lr: {low: 0.1, high: 0.3, log: true, step: 0.1}", 1, "log and step do not go together"),
        ("mixup: {low: 0.0, high: 0.3, step: 0}", 1, "step 0 must be a number above 0"),
        ("mixup: {low: 0.0, high: 0.3, step: 0.2}", 1, "high 0.3 is no whole number of steps"),
        ("epochs: {low: 5, high: 9, step: 5}", 1, "high 9 is no whole number of steps"),
        ("mixup: {low: 0.0, high: 0.3, step: .nan}", 1, "step nan must be a number above 0"),
        ("mixup: {low: 0.0, high: 0.3, step: 1e-30}", 1, "high 0.3 is no whole number of steps"),
        ("epochs: {low: 5, high: 9, step: 0.5}", 1, "step 0.5 must be a whole number above 0"),
        ("epochs: {low: 5, high: 9, step: true}", 1, "step True must be a whole number above 0"),
        ("epochs: {low: 5.0, high: 9}", 1, "epochs 5.0: must be int"),
        ("epochs: {low: 0, high: 9}", 1, "epochs 0: must be 1 or more"),
        ("lr: 0.1", 1, "lr: 0.1 is neither a list of choices nor a range"),
        ("lr: [0.1]", 1, "a choice needs two values or more"),
        ("lr: [0.1, 1e-1]", 1, "a value is there twice"),
        ("model: [resnet18, resnet19]", 1, "unknown model 'resnet19'; did you mean"),
        ("model: {low: base, high: resnet18}", 1, "model has no numbers"),
        ("criterion: [cross_entropy, f2]", 1, "unknown criterion 'f2'"),
        ("lr: [0.1, 0.2]\nseed: [1, 2]", 2, "seed cannot be searched"),
        ("data_dir: [a, b]", 1, "data_dir cannot be searched"),
        ("device: [cpu, cuda]", 1, "device cannot be searched"),
        ("calibration: [none, macro_f1]", 1, "calibration cannot be searched"),
        ("[1, 2]: [1, 2]", 1, "unknown key"),
        ("mixup: {low: 0.0, high: 0.5}\ncutmix: [0.0, 1.2]", 2, "cutmix"),
    ],
)
def test_a_wrong_space_names_its_line(text: str, line: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space(text, BASE, "space.yaml")
    assert str(caught.value).startswith(f"space.yaml, line {line}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "lr", "# only this\n"])
def test_an_empty_space_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="^space.yaml: holds no keys and values"):
        parse_space(text, BASE, "space.yaml")


@pytest.mark.parametrize("text", ["lr: {low: 1", "lr: 2020-13-45", "\0", "a: &a [*a]\nlr: {{"])
def test_no_yaml_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^space.yaml: not YAML"):
        parse_space(text, BASE, "space.yaml")


def test_a_value_may_need_another_of_the_space() -> None:
    plain = resolve("age", "scratch", flags={"soften_age": 0.0})
    with pytest.raises(ConfigError, match="line 1: age_loss ordinal: needs soften_age"):
        parse_space("age_loss: [distribution, ordinal]", plain, "space.yaml")
    multi = resolve("multi", "scratch")
    with pytest.raises(ConfigError, match="line 1: age_loss ordinal: is of task age"):
        parse_space("age_loss: [distribution, ordinal]", multi, "space.yaml")
    text = "age_loss: [distribution, ordinal]\nsoften_age: {low: 2, high: 6}\n"
    assert set(parse_space(text, plain, "space.yaml")) == {"age_loss", "soften_age"}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("start", PRESETS)
def test_the_built_in_space_has_the_preset_in_it(task: str, start: str) -> None:
    base = resolve(task, start, flags={"weights": "imagenet" if start == "imagenet" else "none"})
    space = parse_space(default_space(base), base, "built in")
    assert {"lr", "weight_decay", "mixup", "cutmix", "class_weights", "augmentation"} <= set(space)
    assert all(dimension.holds(getattr(base, key)) for key, dimension in space.items())
    assert ("layer_decay" in space) == (start == "imagenet")
    assert ("soften_age" in space) == (base.soften_age > 0)
    assert {"criterion", "label_smoothing"} & set(space)


def test_the_built_in_space_follows_the_criterion() -> None:
    base = resolve("age", "scratch", flags={"criterion": "focal:0.5,f1:0.5"})
    space = parse_space(default_space(base), base, "built in")
    assert "focal_gamma" in space
    assert not {"criterion", "label_smoothing"} & set(space)
