"""A manifest comes back as it went out; anything else is a CheckpointError."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskcls.errors import CheckpointError
from maskcls.labels import TASKS
from maskcls.manifest import FORMAT, Calibration, Manifest, OnnxManifest
from maskcls.preprocessing import PreprocessSpec

texts = st.text(max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(0, exclude_min=True, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    task = draw(st.sampled_from(list(TASKS.values())))
    side, part = st.integers(32, 2048), st.floats(0, 1, exclude_min=True)
    return Manifest(
        task=task.name,
        class_names=task.class_names,
        preprocess=PreprocessSpec(draw(side), draw(side), (draw(part), draw(part))),
        model=draw(texts),
        model_args={"image_size": [draw(side), draw(side)]},
        config=draw(st.dictionaries(texts, finite | texts | st.none(), max_size=4)),
        split_hash=draw(texts),
        fixes=tuple(draw(st.lists(st.dictionaries(texts, texts, max_size=5), max_size=3))),
        git_revision=draw(texts),
        versions=draw(st.dictionaries(texts, texts, max_size=3)),
        metrics=draw(st.dictionaries(texts, finite, max_size=3)),
        calibration=draw(
            st.none()
            | st.builds(Calibration, positive, st.tuples(*[finite] * len(task.class_names)))
        ),
    )


def small() -> Manifest:
    task = TASKS["age"]
    return Manifest("age", task.class_names, PreprocessSpec(), "resnet18", {})


def calibrated() -> Manifest:
    return dataclasses.replace(small(), calibration=Calibration(1.5, (0.25, 0.0, -1.0)))


@given(manifests())
def test_round_trip(manifest: Manifest) -> None:
    text = manifest.to_json()
    again = Manifest.from_json(text)
    assert again == manifest
    assert type(again.preprocess.crop) is tuple  # a list would make the frozen spec unhashable
    assert hash(again.preprocess) == hash(manifest.preprocess)
    assert again.to_json() == text


def test_equal_manifests_give_equal_text() -> None:
    one = dataclasses.replace(small(), metrics={"f1": 0.5, "accuracy": 0.25})
    other = dataclasses.replace(small(), metrics={"accuracy": 0.25, "f1": 0.5})
    assert one.to_json() == other.to_json()


def test_text_is_readable_json() -> None:
    manifest = dataclasses.replace(small(), config={"name": "실험"})
    assert "실험" in manifest.to_json()
    assert json.loads(manifest.to_json())["class_names"] == ["<30", "30-59", ">=60"]


def test_a_newer_format_says_to_install_a_newer_version() -> None:
    values = json.loads(small().to_json()) | {"format": FORMAT + 1, "new_key": 1}
    with pytest.raises(CheckpointError, match=f"format {FORMAT + 1}.*newer"):
        Manifest.from_json(json.dumps(values))


def test_a_file_has_the_oldest_format_that_says_all_that_is_in_it() -> None:
    """A version that would label without the calibration refuses the file."""
    plain, other = (json.loads(manifest.to_json()) for manifest in (small(), calibrated()))
    assert plain["format"] == 1 and "calibration" not in plain  # as before there was any
    assert other["format"] == 2 == FORMAT
    assert other["calibration"] == {"temperature": 1.5, "bias": [0.25, 0.0, -1.0]}
    assert Manifest.from_json(json.dumps(plain)).calibration is None
    files = [OnnxManifest("network", (m,), ("",), "fp32", 20) for m in (small(), calibrated())]
    for file, number in zip(files, (1, 2), strict=True):
        assert json.loads(file.to_json())["format"] == number
        assert OnnxManifest.from_json(file.to_json()) == file


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": "1"},
        {"temperature": None},
        {"temperature": True},
        {"temperature": float("nan")},
        {"bias": [0.0, 0.0]},
        {"bias": [0.0, 0.0, float("inf")]},
        {"bias": ["0", "0", "0"]},
        {"bias": None},
        {"bias": 1.0},
        {"tau": 1.0},
    ],
)
def test_a_calibration_that_does_not_fit_is_refused(changed: dict[str, object]) -> None:
    values = json.loads(calibrated().to_json())
    values["calibration"] |= changed
    with pytest.raises(CheckpointError, match="manifest"):
        Manifest.from_json(json.dumps(values))


@pytest.mark.parametrize("value", [[], [1], "no", 3, True, {}])
def test_no_calibration_at_all_is_refused(value: object) -> None:
    values = json.loads(calibrated().to_json()) | {"calibration": value}
    with pytest.raises(CheckpointError):
        Manifest.from_json(json.dumps(values))


def test_classes_of_another_order_are_refused() -> None:
    values = json.loads(small().to_json())
    values["class_names"].reverse()
    with pytest.raises(CheckpointError, match="not one that this version knows"):
        Manifest.from_json(json.dumps(values))


@pytest.mark.parametrize("task", ["race", "", ["age"], None, 3])
def test_an_unknown_task_is_refused(task: object) -> None:
    with pytest.raises(CheckpointError):
        Manifest.from_json(json.dumps(json.loads(small().to_json()) | {"task": task}))


def test_a_file_that_is_given_away_names_no_place_and_nobody() -> None:
    fix = {"target": "000001_male_Asian_30", "field": "age", "old": "30", "new": "31", "why": "Kim"}
    config = {"data_dir": ["/home/kim/data"], "cache": "/home/kim", "lr": 0.1}
    own = dataclasses.replace(small(), fixes=(fix,), config=config | {"weights": "/home/kim/w.pt"})
    shown = own.without_places()
    assert shown.fixes == ({"field": "age", "old": "30", "new": "31"},)
    assert shown.config == {"lr": 0.1, "weights": "w.pt"}
    assert not any(word in shown.to_json() for word in ("kim", "Kim", "000001"))


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", "3", '"a"', "NaN", "[" * 100_000])
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError):
        Manifest.from_json(text)


@pytest.mark.parametrize("value", [None, b"\xff\xfe\xfd", 3, {}])
def test_no_text_at_all_is_refused(value: Any) -> None:
    with pytest.raises(CheckpointError):
        Manifest.from_json(value)


@given(json_values)
def test_random_values_raise_nothing_else(value: object) -> None:
    with pytest.raises(CheckpointError):
        Manifest.from_json(json.dumps(value))


@given(
    path=st.sampled_from(
        [(key,) for key in json.loads(calibrated().to_json())]
        + [("calibration", key) for key in ("temperature", "bias")]
        + [("preprocess", key) for key in PreprocessSpec().to_dict()]
    ),
    value=json_values,
    remove=st.booleans(),
)
def test_mutated_manifests_raise_nothing_else(
    path: tuple[str, ...], value: object, remove: bool
) -> None:
    values: dict[str, Any] = json.loads(calibrated().to_json())
    part = values
    for key in path[:-1]:
        part = part[key]
    if remove:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    try:
        manifest = Manifest.from_json(json.dumps(values))
    except CheckpointError:
        return
    assert Manifest.from_json(manifest.to_json()).to_json() == manifest.to_json()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", ["a", "b", "c"]),
        ("mean", [None, None, None]),
        ("height", 64.5),
        ("height", True),
        ("crop", ["1", "1"]),
        ("std", [1e999, 1, 1]),
        ("interpolation", "bicubic"),
        ("unknown", 1),
    ],
)
def test_preprocessing_that_no_picture_survives_is_refused(key: str, value: object) -> None:
    values = json.loads(small().to_json())
    values["preprocess"][key] = value
    with pytest.raises(CheckpointError):
        Manifest.from_json(json.dumps(values))
