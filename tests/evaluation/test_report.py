"""The report as a page: what is on it, that it stands alone, and how wide it is."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics
from sklearn.metrics import f1_score

from maskcls.evaluation.answers import Answers, beliefs_of
from maskcls.evaluation.charts import line_chart, ticks
from maskcls.evaluation.mistakes import Mistake, View, describe, worst
from maskcls.evaluation.people import if_perfect, intervals
from maskcls.evaluation.predictions_report import report_predictions
from maskcls.evaluation.reliability import expected_calibration_error
from maskcls.evaluation.report import (
    Report,
    Run,
    overlay,
    read_history,
    render,
    write_report,
)
from maskcls.evaluation.scoring import NO_ANSWER
from maskcls.labels import ATTRIBUTES, MULTI, TASKS, Task

VOID = {"meta", "br", "img"}
HOSTILE = "000001_female_<script>alert(1)</script>\"'&_45"
KOREAN = "000002_male_아시아_김철수"


class Page(HTMLParser):
    """Reads a page, and refuses one whose tags do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if "style" not in self.open:
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def answers(task: Task = MULTI, count: int = 300) -> Answers:
    rng = np.random.default_rng(0)
    digits = {name: rng.integers(0, len(names), count) for name, names in ATTRIBUTES.items()}
    truth = task.encode(**digits)
    probabilities = rng.dirichlet(np.full(task.num_classes, 0.2), count)
    probabilities[np.arange(count), truth] += 1
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    whose = rng.integers(0, 30, count)
    return Answers(
        task,
        truth,
        probabilities.argmax(axis=1),
        digits,
        people=[f"{HOSTILE} {person}" for person in whose],
        races=[("Asian", KOREAN, HOSTILE)[person % 3] for person in whose],
        beliefs=beliefs_of(task, probabilities, truth),
    )


def history(epochs: int = 5) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch,
            "lr": 0.001,
            "train_loss": 2 / epoch,
            "macro_f1": 0.9 - 0.1 * abs(epoch - 3),
            "accuracy": 0.8,
            "val_loss": float("nan") if epoch == 2 else 2.2 / epoch,
        }
        for epoch in range(1, epochs + 1)
    ]


def full(task: Task = MULTI) -> Report:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 48, 3), dtype=np.uint8)
    view = View("age", pixels, rng.random((64, 48), dtype=np.float32))
    names = task.class_names
    mistakes = [
        Mistake(f"{name}/mask1.jpg", names[0], names[-1], 0.01, 0.98, (view,))
        for name in (HOSTILE, KOREAN)
    ]
    run = Run(task.name, "resnet18", f"runs/{HOSTILE}", {"data_dir": [HOSTILE], "lr": 1}, history())
    return Report(f"Scores of {HOSTILE}", answers(task), [run], {}, mistakes, [KOREAN])


def test_the_page_stands_alone() -> None:
    text = render(full())
    page = Page(text)
    assert not re.search(r"https?://|//[a-z]", re.sub(r"base64,[^\"]*", "", text))
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
        assert not {"href", "xlink:href", "srcset", "action"} & attributes.keys()
    assert "url(" not in text
    assert "@import" not in text
    policy = page.named("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert str(policy["content"]).startswith("default-src 'none'")


def test_everything_is_on_it() -> None:
    report = full()
    text = render(report)
    page = Page(text)
    for name, f1 in if_perfect(report.answers.truth, report.answers.predicted).items():
        assert f"{f1:.4f} ({name})" in page.text
    assert page.headings == [
        *("Scores", "Confusion matrices", "Classes", "Groups", "Reliability", "Learning curves"),
        *("The worst mistakes", "Config"),
    ]
    a = report.answers
    score = f1_score(a.truth, a.predicted, average="macro")
    assert a.people is not None
    (low, high), _ = intervals(a.truth, a.predicted, a.people, MULTI.num_classes)
    assert f"macro F1<b>{score:.4f}</b>{low:.3f} to {high:.3f}" in text
    for name, (probabilities, labels) in a.beliefs.items():
        assert f"{name}: ECE {expected_calibration_error(probabilities, labels):.4f}" in page.text
    assert set(a.beliefs) == {"all 18 classes", *ATTRIBUTES}
    assert f"{report.made:%Y-%m-%d}" in page.text
    assert "resnet18" in page.text
    assert "30 people, 300 pictures" in page.text
    charts = page.named("svg")
    assert len(charts) == 4 + 2
    assert text.count('role="img"><title>') == len(charts)
    assert all(image["alt"] for image in page.named("img"))
    assert len(page.named("img")) == 2 * len(report.mistakes or ())
    assert "Privacy" in page.text
    assert "mask × gender × age × race" in page.text


def test_tables_have_what_scikit_learn_counts() -> None:
    rng = np.random.default_rng(1)
    right = answers()
    wrong = np.where(rng.random(300) < 0.4, rng.integers(0, 18, 300) // 2, right.truth)
    text = render(replace(full(), answers=replace(right, predicted=wrong)))

    def numbers(caption: str) -> np.ndarray:
        table = text.split(f"<caption>{caption}</caption>")[1].split("</table>")[0]
        rows = table.split("<tr")[2:]  # without the header
        return np.array([re.findall(r"<td[^>]*>([^<]*)</td>", one) for one in rows])

    ages = (MULTI.decode(side)["age"] for side in (right.truth, wrong))
    expected = metrics.confusion_matrix(*ages)
    assert (expected != expected.T).any()
    np.testing.assert_array_equal(numbers("Confusion matrix: age").astype(int), expected)
    scores = metrics.precision_recall_fscore_support(right.truth, wrong)
    assert np.abs(scores[0] - scores[1]).max() > 0.1
    shown = numbers("Scores of the classes").astype(float)
    np.testing.assert_allclose(shown, np.stack(scores, axis=1), atol=5e-4)


@pytest.mark.parametrize("task", ["age", "mask_gender"])
def test_one_network(task: str) -> None:
    page = Page(render(full(TASKS[task])))
    tables = [str(each["aria-label"]) for each in page.named("div") if "aria-label" in each]
    matrices = [name for name in tables if name.startswith("Confusion")]
    shown = {"age": ["age"], "mask_gender": ["all 6 classes", "mask", "gender"]}[task]
    assert matrices == [f"Confusion matrix: {name}" for name in shown]
    assert "mask × gender × age × race" in tables  # whatever the network answers


def test_hostile_and_korean_names() -> None:
    text = render(full())
    assert "<script" not in text
    assert escape(HOSTILE) in text
    page = Page(text)
    assert page.text.count(HOSTILE) > 4  # title, run, config, mistake, races
    assert KOREAN in page.text


def test_groups_of_few_people_are_marked() -> None:
    text = render(full())
    assert re.search(r'<tr class="few">', text)
    rows = re.findall(r"<tr( class=\"few\")?>((?:(?!</tr>).)*)</tr>", text)
    sizes = {bool(few): [] for few, _ in rows}
    for few, cells in rows:
        found = re.findall(r'<td class="n">(\d+)</td>', cells)
        if len(found) == 2 and cells.count("<td") == 4 and "bar" in cells:
            sizes[bool(few)].append(int(found[0]))
    assert max(sizes[True]) < 10 <= min(sizes[False])


def test_what_is_not_there_is_said_to_be_left_out() -> None:
    a = answers()
    predicted = a.predicted.copy()
    predicted[:4] = NO_ANSWER
    bare = Answers(MULTI, a.truth, predicted, a.attributes)
    page = Page(render(Report("Scores", bare)))
    assert len(page.headings) == 8
    assert page.text.count("Left out: ") == 4  # reliability, curves, mistakes, config
    assert "Without intervals" in page.text
    assert "Without race" in page.text
    assert "4 pictures have no answer; they count as wrong." in page.text
    assert "no answer" in [
        text for text in re.findall(r'scope="col"[^>]*>([^<]*)', render(Report("", bare)))
    ]
    assert "Privacy" not in page.text
    assert not page.named("svg")


def test_mistakes_without_pictures() -> None:
    report = full()
    mistakes = [replace(mistake, views=()) for mistake in report.mistakes or ()]
    page = Page(render(replace(report, mistakes=mistakes)))
    assert not page.named("img")
    assert "holds pictures of people" not in page.text
    assert "Privacy: this file holds the names of people's folders" in page.text
    assert HOSTILE + "/mask1.jpg" in page.text


def test_a_perfect_network_of_one_epoch() -> None:
    a = answers(TASKS["age"])
    perfect = replace(a, predicted=a.truth, beliefs=beliefs_of(a.task, np.eye(3)[a.truth], a.truth))
    run = Run("age", "base", "runs/age/exp", {}, history(1))
    page = Page(render(Report("Scores", perfect, [run], mistakes=[])))
    assert "0 of 0 wrong answers" in page.text
    assert "ECE 0.0000" in page.text
    for count, told in ((5, "45% of others"), (300, "0.99% of others")):  # 1 - 0.05 ** (1 / count)
        perfect = replace(perfect, people=[str(rank % count) for rank in range(300)])
        assert told in Page(render(Report("Scores", perfect, [run], mistakes=[]))).text


def test_a_name_that_is_no_utf_8_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(replace(full(), title="a\udcff"), path)
    assert "<title>a\\udcff</title>" in path.read_text("utf-8")


def test_the_pictures_are_those_of_the_mistakes() -> None:
    report = full()
    [first, *_] = Page(render(report)).named("img")
    assert (first["width"], first["height"]) == ("96", "128")  # twice what the network takes
    data = base64.b64decode(str(first["src"]).partition("base64,")[2])
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG"
        assert image.size == (48, 64)


def test_an_overlay_is_lighter_where_it_is_hot() -> None:
    pixels = np.full((4, 4, 3), 100, dtype=np.uint8)
    heat = np.zeros((4, 4), dtype=np.float32)
    heat[:2] = 1
    mixed = overlay(pixels, heat)
    assert mixed.dtype == np.uint8
    assert mixed[:2].mean() > mixed[2:].mean() + 60


# --- the worst mistakes --------------------------------------------------------------------------


def test_the_surest_mistake_comes_first() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3], [0.5, 0.5]])
    truth = np.array([0, 0, 0, 1, 1])
    assert worst(probabilities, truth).tolist() == [2, 3, 1, 4]
    assert worst(probabilities, truth, limit=1).tolist() == [2]
    assert worst(probabilities[:1], truth[:1]).tolist() == []


def test_mistakes_say_what_was_answered_and_how_surely() -> None:
    [mistake] = describe(TASKS["gender"], ["a/b.jpg"], np.array([1]), np.array([[0.75, 0.25]]))
    assert (mistake.truth, mistake.predicted) == ("female", "male")
    assert (mistake.truth_probability, mistake.predicted_probability) == (0.25, 0.75)
    assert mistake.views == ()


# --- what is read --------------------------------------------------------------------------------


def test_a_prediction_file_in_folders_of_people_tells_who_is_on_it(tmp_path: Path) -> None:
    ids = [f"{n:06}_female_아시아_45/mask{m}.jpg" for n in range(12) for m in range(1, 4)]
    truth = dict.fromkeys(ids, 4)
    report = report_predictions(tmp_path / "gt.csv", _plain(tmp_path, ids), truth, truth, [])
    assert report.answers.people == [name.partition("/")[0] for name in ids]
    assert set(report.answers.races or ()) == {"아시아"}
    flat = {"a.jpg": 4} | truth
    report = report_predictions(tmp_path / "gt.csv", _plain(tmp_path, list(flat)), flat, flat, [])
    assert report.answers.people is report.answers.races is None


def _plain(folder: Path, ids: list[str]) -> Path:
    path = folder / "output.csv"
    path.write_text("ImageID,ans\n" + "".join(f"{name},4\n" for name in ids), "utf-8")
    return path


def test_history_is_read_back_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert read_history(path) == []
    path.write_text("epoch,macro_f1\n1,0.5\n2,nan\n", "utf-8")
    assert [row["epoch"] for row in read_history(path)] == [1, 2]
    for text in ("epoch,macro_f1\n1,x\n", "epoch,macro_f1\n1\n", "epoch,loss\n1,2\n", "\x00"):
        path.write_text(text, "utf-8")
        assert read_history(path) == []


# --- charts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.31, 0.52, [0.3, 0.35, 0.4, 0.45, 0.5, 0.55]),
        (2, 2, [1.4, 1.6, 1.8, 2, 2.2, 2.4, 2.6]),
        (-120, 70, [-150, -100, -50, 0, 50, 100]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 5) == pytest.approx(expected)


def test_a_chart_of_nothing_and_one_of_odd_numbers() -> None:
    nan, inf = float("nan"), float("inf")
    for series in ({}, {"a": []}, {"a": [(1, nan)]}, {"<b>": [(1, 2), (2, inf), (3, 2)]}):
        svg = line_chart("<b>", series, "epoch", chosen=1)  # type: ignore[arg-type]
        Page(svg)
        assert "nan" not in svg
        assert "inf" not in svg


# --- in a browser --------------------------------------------------------------------------------

WIDTHS = (390, 1280)
FRAME = '<iframe width="{width}" height="800" srcdoc="{text}"></iframe>'
PROBE = """<!DOCTYPE html><meta charset="utf-8"><body>{frames}
<script>onload = () => {{
  const frames = [...document.querySelectorAll("iframe")];
  const roots = frames.map(frame => frame.contentDocument.documentElement);
  const found = roots.map(root => `${{root.scrollWidth}} of ${{root.clientWidth}}`);
  document.body.innerHTML = `<p>${{found.join("; ")}}</p>`;
}}</script>"""


def widths_in_a_browser(text: str, folder: Path) -> list[tuple[int, int]]:
    """(width of the content, visible width) of a page in a window of each of `WIDTHS`."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("needs Chromium to measure the page; there is none here")
    frames = "".join(FRAME.format(width=width, text=escape(text)) for width in WIDTHS)
    probe = folder / "probe.html"
    probe.write_text(PROBE.format(frames=frames), "utf-8")
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", f"--user-data-dir={folder / 'profile'}"),
            *("--window-size=1500,1000", "--dump-dom", probe.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = [(int(a), int(b)) for a, b in re.findall(r"(\d+) of (\d+)", done.stdout)]
    assert len(found) == len(WIDTHS), done.stderr[-2000:]
    for width, (_, visible) in zip(WIDTHS, found, strict=True):
        assert width - 20 <= visible <= width  # less a scroll bar
    return found


def test_nothing_is_wider_than_the_page(tmp_path: Path) -> None:
    for whole, visible in widths_in_a_browser(render(full()), tmp_path):
        assert whole <= visible
