"""The score agrees with scikit-learn, and unanswered pictures count as wrong."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from maskcls.commands._scores import format_scores
from maskcls.errors import DataError
from maskcls.evaluation.scoring import (
    NO_ANSWER,
    confusion_matrix,
    macro_f1_of_true,
    read_answers,
    score_answers,
    scores_from_confusion,
    scores_of_many,
)
from maskcls.labels import ATTRIBUTES, MULTI


@st.composite
def labellings(draw: st.DrawFn) -> tuple[int, list[int], list[int]]:
    """(classes, truth, predicted); short lists, so that classes are often absent."""
    num_classes = draw(st.sampled_from([2, 3, 6, 18]))
    label = st.integers(0, num_classes - 1)
    pairs = draw(st.lists(st.tuples(label, label), min_size=1, max_size=60))
    return num_classes, [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def assert_like_sklearn(num_classes: int, truth: list[int], predicted: list[int]) -> None:
    labels = range(num_classes)
    matrix = confusion_matrix(np.array(truth), np.array(predicted), num_classes)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(truth, predicted, labels=labels))
    scores = scores_from_confusion(matrix)
    expected = metrics.precision_recall_fscore_support(
        truth, predicted, labels=labels, zero_division=0
    )
    for ours, theirs in zip(
        (scores.precision, scores.recall, scores.f1, scores.support), expected, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)
    macro_f1 = metrics.f1_score(truth, predicted, average="macro")
    assert scores.macro_f1 == pytest.approx(macro_f1, rel=1e-14)
    assert scores.accuracy == metrics.accuracy_score(truth, predicted)


@given(labellings())
def test_scores_equal_sklearn(labelling: tuple[int, list[int], list[int]]) -> None:
    assert_like_sklearn(*labelling)


@pytest.mark.parametrize("num_classes", [2, 3, 6, 18])
def test_scores_equal_sklearn_on_many_pictures(num_classes: int) -> None:
    random = np.random.default_rng(num_classes)
    truth = random.integers(0, num_classes, 5000)
    guess = random.integers(0, num_classes, 5000)
    predicted = np.where(random.random(5000) < 0.7, truth, guess)
    assert_like_sklearn(num_classes, truth.tolist(), predicted.tolist())


def test_a_class_that_is_only_predicted_counts_and_an_absent_one_does_not() -> None:
    scores = scores_from_confusion(confusion_matrix(np.array([0, 0]), np.array([0, 1]), 3))
    assert scores.occurs.tolist() == [True, True, False]
    assert scores.macro_f1 == pytest.approx((2 / 3 + 0) / 2)


def test_empty_matrix_scores_nan() -> None:
    scores = scores_from_confusion(confusion_matrix(np.array([]), np.array([]), 3))
    assert math.isnan(scores.macro_f1)
    assert math.isnan(scores.accuracy)
    assert scores.f1.tolist() == [0, 0, 0]


@pytest.mark.parametrize("columns", [6, 7])
def test_many_matrices_score_as_each_of_them(columns: int) -> None:
    rng = np.random.default_rng(0)
    matrices = rng.integers(0, 5, (50, 6, columns)) * (rng.random((50, 6, columns)) < 0.2)
    matrices = matrices[matrices.sum(axis=(1, 2)) > 0]
    each = [scores_from_confusion(matrix) for matrix in matrices]
    assert any(not scores.occurs.all() for scores in each)
    macro_f1, accuracy = scores_of_many(matrices)
    np.testing.assert_allclose(macro_f1, [scores.macro_f1 for scores in each], rtol=1e-14)
    np.testing.assert_allclose(accuracy, [scores.accuracy for scores in each], rtol=1e-14)


@given(labellings())
def test_macro_f1_of_true_classes_is_that_of_sklearn(
    case: tuple[int, list[int], list[int]],
) -> None:
    num_classes, truth, predicted = case
    matrix = confusion_matrix(np.array(truth), np.array(predicted), num_classes)
    expected = metrics.f1_score(truth, predicted, labels=sorted(set(truth)), average="macro")
    assert macro_f1_of_true(matrix[None]) == pytest.approx(expected)
    assert scores_from_confusion(matrix).macro_f1_of_true == pytest.approx(expected)


def test_confusion_matrix_rejects_labels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"labels 0\.\.3 are not in 0\.\.2"):
        confusion_matrix(np.array([0, 3]), np.array([0, 1]), 3)
    with pytest.raises(ValueError, match=r"labels -1\.\.1 are not in 0\.\.2"):
        confusion_matrix(np.array([0, 2]), np.array([-1, 1]), 3)
    with pytest.raises(ValueError, match="shapes"):
        confusion_matrix(np.array([0, 2]), np.array([1]), 3)


answer_tables = st.dictionaries(
    st.text("abc", min_size=1, max_size=6),
    st.tuples(st.integers(0, 17), st.integers(0, 17)),
    min_size=1,
    max_size=40,
)


@given(answer_tables, st.randoms(use_true_random=False))
def test_complete_answers_score_as_sklearn_in_any_order(
    table: dict[str, tuple[int, int]], random: object
) -> None:
    truth = {name: pair[0] for name, pair in table.items()}
    names = list(table)
    random.shuffle(names)  # type: ignore[attr-defined]
    scores = score_answers(truth, {name: table[name][1] for name in names})
    assert (scores.count, scores.missing) == (len(table), 0)
    true, predicted = (np.array([pair[side] for pair in table.values()]) for side in (0, 1))
    for ours, theirs, guesses in [
        (scores.classes, true, predicted),
        *(
            (scores.attributes[name], MULTI.decode(true)[name], MULTI.decode(predicted)[name])
            for name in ATTRIBUTES
        ),
    ]:
        assert ours.accuracy == metrics.accuracy_score(theirs, guesses)
        macro_f1 = metrics.f1_score(theirs, guesses, average="macro")
        assert ours.macro_f1 == pytest.approx(macro_f1, rel=1e-14)


@given(answer_tables, st.data())
def test_unanswered_pictures_are_misses_of_their_class(
    table: dict[str, tuple[int, int]], data: st.DataObject
) -> None:
    truth = {name: pair[0] for name, pair in table.items()}
    left_out = set(data.draw(st.lists(st.sampled_from(list(table)))))
    emptied = set(data.draw(st.lists(st.sampled_from(list(table)))))
    predicted = {
        name: NO_ANSWER if name in emptied else pair[1]
        for name, pair in table.items()
        if name not in left_out
    }
    scores = score_answers(truth, predicted)
    assert scores.missing == len(left_out | emptied)

    # For scikit-learn "no answer" is one more class, left out of the mean.
    answers = [predicted.get(name, NO_ANSWER) for name in truth]
    occurring = sorted({*truth.values(), *answers} - {NO_ANSWER})
    expected = metrics.f1_score(
        list(truth.values()), answers, labels=occurring, average="macro", zero_division=0
    )
    assert scores.classes.macro_f1 == pytest.approx(expected, rel=1e-14)
    hits = sum(truth[name] == answer for name, answer in predicted.items())
    assert scores.classes.accuracy == hits / len(truth)
    for name, classes in scores.attributes.items():
        digit = {label: MULTI.decode(label)[name] for label in range(18)} | {NO_ANSWER: -1}
        true_digits = [digit[label] for label in truth.values()]
        digits = [digit[label] for label in answers]
        expected = metrics.f1_score(
            true_digits,
            digits,
            labels=sorted({*true_digits, *digits} - {-1}),
            average="macro",
            zero_division=0,
        )
        assert classes.macro_f1 == pytest.approx(expected, rel=1e-14)


def test_nothing_answered_scores_zero() -> None:
    scores = score_answers({"a": 0, "b": 17}, {"a": NO_ANSWER})
    assert (scores.count, scores.missing) == (2, 2)
    assert scores.classes.macro_f1 == scores.classes.accuracy == 0
    assert [each.macro_f1 for each in scores.attributes.values()] == [0, 0, 0]


def test_predictions_for_other_pictures_are_refused() -> None:
    with pytest.raises(DataError, match=r"2 of 3 predictions .* not in the ground truth.*'x.jpg'"):
        score_answers({"a.jpg": 0}, {"a.jpg": 0, "x.jpg": 1, "y.jpg": 2})


def test_to_dict_is_plain_json() -> None:
    values = score_answers({"a": 0, "b": 17, "c": 5}, {"a": 0, "b": 16}).to_dict()
    assert list(values) == [
        *("macro_f1", "accuracy", "mask", "gender", "age", "per_class", "count", "missing"),
        "confusion",
    ]
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    for attribute in ATTRIBUTES:
        assert list(values[attribute]) == ["macro_f1", "accuracy"]
    assert [entry["name"] for entry in values["per_class"]] == list(MULTI.class_names)
    assert values["per_class"][17] == {
        "label": 17,
        "name": "not worn, female, >=60",
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 1,
    }
    assert values["accuracy"] == pytest.approx(1 / 3)
    assert (values["count"], values["missing"]) == (3, 1)
    assert np.shape(values["confusion"]) == (18, 18)
    assert np.sum(values["confusion"]) == 2
    assert values["confusion"][17][16] == 1


def test_precision_and_recall_are_not_exchanged() -> None:
    """Of two of class 0 one is found, and taken for class 1 is the other."""
    scores = score_answers({"a": 0, "b": 0, "c": 1}, {"a": 0, "b": 1, "c": 1})
    first, second = scores.to_dict()["per_class"][:2]
    assert (first["precision"], first["recall"]) == (1.0, 0.5)
    assert (second["precision"], second["recall"]) == (0.5, 1.0)
    lines = [line.split() for line in format_scores(scores).splitlines()]
    shown = {line[0]: line[-4:] for line in lines if line and line[0] in ("0", "1")}
    assert shown == {
        "0": ["1.0000", "0.5000", "0.6667", "2"],
        "1": ["0.5000", "1.0000", "0.6667", "1"],
    }


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_read_answers(tmp_path: Path) -> None:
    table = write(tmp_path / "a.csv", '\ufeffother,ImageID,ans\r\n1,"a,b.jpg",0\r\n2,b.jpg, 17\r\n')
    assert read_answers(table) == {"a,b.jpg": 0, "b.jpg": 17}


def test_line_ends_in_a_name_stay(tmp_path: Path) -> None:
    table = write(tmp_path / "a.csv", 'ImageID,ans\n"a\r\nb",0\n"a\nb",1\n"a\rb",2\n')
    assert read_answers(table) == {"a\r\nb": 0, "a\nb": 1, "a\rb": 2}


def test_names_match_in_any_unicode_form(tmp_path: Path) -> None:
    name = "가나.jpg"
    decomposed = unicodedata.normalize("NFD", name)
    assert decomposed != name
    assert read_answers(write(tmp_path / "a.csv", f"ImageID,ans\n{decomposed},3\n")) == {name: 3}
    twice = write(tmp_path / "b.csv", f"ImageID,ans\n{decomposed},3\n{name},3\n")
    with pytest.raises(DataError, match="stands in line 2 too"):
        read_answers(twice)


def test_an_empty_answer_is_for_predictions_only(tmp_path: Path) -> None:
    table = write(tmp_path / "a.csv", "ImageID,ans\na.jpg,\n")
    assert read_answers(table, allow_empty=True) == {"a.jpg": NO_ANSWER}
    with pytest.raises(DataError, match=r"a\.csv, line 2: ans '' is not a whole number"):
        read_answers(table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("ImageID,ans\n", "no rows under the header"),
        ("ImageID,label\na,1\n", "line 1: no column ans in 'ImageID,label'"),
        ("a;b\n", "no column ImageID or ans in 'a;b'"),
        ("ImageID,ans\na,1\nb,cat\n", "line 3: ans 'cat' is not a whole number from 0 to 17"),
        ("ImageID,ans\na,1.0\n", "line 2: ans '1.0' is not a whole number"),
        ("ImageID,ans\na,18\n", "line 2: ans '18' is not a whole number from 0 to 17"),
        ("ImageID,ans\na,-1\n", "line 2: ans '-1' is not a whole number"),
        ("ImageID,ans\na,1_0\n", "line 2: ans '1_0' is not a whole number"),
        ("ImageID,ans\na,١\n", "line 2: ans '١' is not a whole number"),
        (f"ImageID,ans\na,{'9' * 5000}\n", "is not a whole number"),
        ("ImageID,ans\na,1\na,1\n", "line 3: ImageID 'a' stands in line 2 too"),
        ("ImageID,ans\n,1\n", "line 2: ImageID is empty; ans is '1'"),
        ("ImageID,ans\na,1\nb\n", "line 3: not 2 cells as in the header; first cell 'b'"),
        ("ImageID,ans\na,b,1\n", "line 2: not 2 cells as in the header; first cell 'a'"),
        ('ImageID,ans\n"a,1\n', "not a CSV table in UTF-8"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    table = write(tmp_path / "answers.csv", text)
    with pytest.raises(DataError, match=rf"answers\.csv.*{re.escape(message)}"):
        read_answers(table, allow_empty=True)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: No such file"):
        read_answers(tmp_path / "none.csv")
    with pytest.raises(DataError, match="Is a directory"):
        read_answers(tmp_path)
    (tmp_path / "latin.csv").write_bytes("ImageID,ans\né,1\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv: not a CSV table in UTF-8"):
        read_answers(tmp_path / "latin.csv")
