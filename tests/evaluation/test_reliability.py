"""Bins and calibration error, by hand and by their properties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskcls.errors import DataError
from maskcls.evaluation.reliability import (
    expected_calibration_error,
    read_probabilities,
    reliability,
)
from maskcls.labels import ATTRIBUTES, probability_column

PROBABILITIES = np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55], [1.0, 0.0]])
LABELS = np.array([0, 1, 1, 0, 1, 0])


def test_an_example_worked_by_hand() -> None:
    bins = reliability(PROBABILITIES, LABELS, bins=4)
    # Confidences .9 .7 .6 .8 .55 1.0, right 1 1 0 0 1 1: (.5, .75] has three, (.75, 1] three.
    assert [each.count for each in bins] == [0, 0, 3, 3]
    assert [(each.low, each.high) for each in bins[2:]] == [(0.5, 0.75), (0.75, 1.0)]
    assert bins[2].confidence == pytest.approx((0.7 + 0.6 + 0.55) / 3)
    assert bins[2].accuracy == bins[3].accuracy == pytest.approx(2 / 3)
    assert bins[3].confidence == pytest.approx(0.9)
    expected = 0.5 * abs(2 / 3 - 1.85 / 3) + 0.5 * abs(2 / 3 - 0.9)
    assert expected_calibration_error(PROBABILITIES, LABELS, bins=4) == pytest.approx(expected)


def test_the_edges_of_bins_belong_below() -> None:
    bins = reliability(np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]]), np.zeros(3), bins=4)
    assert [each.count for each in bins] == [0, 1, 1, 1]


def test_one_that_is_as_sure_as_it_is_right_has_no_error() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 200_000)
    labels = (rng.random(200_000) > sure).astype(int)  # class 0 as often as it was said
    probabilities = np.stack([sure, 1 - sure], axis=1)
    assert expected_calibration_error(probabilities, labels) < 0.01
    assert expected_calibration_error(np.eye(2)[labels], labels) == 0
    assert expected_calibration_error(np.eye(2)[1 - labels], labels) == 1


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        (PROBABILITIES, LABELS[:3]),
        (PROBABILITIES[0], LABELS),
        (PROBABILITIES * 2, LABELS),
        (PROBABILITIES * np.nan, LABELS),
        (PROBABILITIES[:0], LABELS[:0]),
    ],
)
def test_what_are_no_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        reliability(probabilities, labels)


COLUMNS = [probability_column(name, value) for name in ATTRIBUTES for value in ATTRIBUTES[name]]


def write(path: Path, *cells: str, columns: list[str] = COLUMNS) -> Path:
    rows = "".join(f"{number}.jpg,{row}\n" for number, row in enumerate(cells))
    path.write_text(f"ImageID,ans,{','.join(columns)}\n{rows}", "utf-8")
    return path


def test_probabilities_are_read_back(tmp_path: Path) -> None:
    path = write(tmp_path / "o.csv", "3,.1,.2,.7,.4,.6,.5,.25,.25", ",,,,,,,,")
    found = read_probabilities(path)
    assert {name: list(values) for name, values in found.items()} == dict.fromkeys(
        ATTRIBUTES, ["0.jpg"]
    )
    assert found["mask"]["0.jpg"].tolist() == [0.1, 0.2, 0.7]
    assert found["age"]["0.jpg"].tolist() == [0.5, 0.25, 0.25]
    plain = tmp_path / "plain.csv"
    plain.write_text("ImageID,ans\n0.jpg,3\n", "utf-8")
    assert read_probabilities(plain) == {}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (".1,.2,.7,.4,x,.5,.25,.25", "line 2: could not convert string to float: 'x'"),
        (".1,.2,1.7,.4,.6,.5,.25,.25", "line 2: mask .* are not probabilities"),
        ("nan,.2,.7,.4,.6,.5,.25,.25", "line 2: mask .* are not probabilities"),
    ],
)
def test_cells_that_are_no_probabilities(tmp_path: Path, cells: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_probabilities(write(tmp_path / "o.csv", f"3,{cells}"))


def test_some_of_the_columns_are_not_enough(tmp_path: Path) -> None:
    path = write(tmp_path / "o.csv", "3,.1,.2,.7,.4,.6,.5,.25", columns=COLUMNS[:-1])
    with pytest.raises(DataError, match="no column 'age: >=60'"):
        read_probabilities(path)
