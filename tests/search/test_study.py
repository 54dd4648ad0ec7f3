"""Searches whose trials are real trainings of a tiny network on drawn faces."""

from __future__ import annotations

import csv
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure

import maskcls
from maskcls.commands.search import main
from maskcls.commands.train import main as train_main
from maskcls.config import TrainConfig, read_yaml, resolve
from maskcls.data.sample import make_sample
from maskcls.search import study as searching
from maskcls.search.folder import settings_yaml
from maskcls.training import engines, handlers
from tests.training.small import SMALL

ROOT = Path(maskcls.__file__).parents[1]
STEPS = 4  # of an epoch: 9 people, 63 pictures
SPACE = "lr: {low: 0.0005, high: 0.02, log: true}\nclip_norm: [0.0, 1.0]\n"

Fails = Callable[..., str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("search") / "sample"
    return make_sample(root, people=12, eval_people=6, progress=False) / "train"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, no variable set, and figures that take no time."""
    for name in ("SM_CHANNEL_TRAIN", "SM_MODEL_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(handlers, "confusion_figure", lambda *a: Figure((1, 1), dpi=8))
    monkeypatch.setattr(handlers, "grid_image", lambda *a: Figure((1, 1), dpi=8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def options(place: Path, data: Path) -> list[str]:
    """A search of the task age with short trials."""
    values: dict[str, Any] = SMALL | {
        "data_dir": str(data),
        "cache": str(data.parent / "cache"),
        "epochs": 2,
        "lr": 0.005,
        "clip_norm": 1.0,
        "ema_decay": 0.0,
    }
    (place / "small.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    (place / "space.yaml").write_text(SPACE, encoding="utf-8")
    return ["--task", "age", "--config", "small.yaml", "--space", "space.yaml"]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """The one `error:` line of a command that ends with it."""

    def run(argv: list[str], code: int) -> str:
        assert main(argv) == code
        err = capsys.readouterr().err
        assert "Traceback" not in err
        [line] = [line for line in err.splitlines() if line.startswith("error: ")]
        return line

    return run


def rows(study: Path) -> list[dict[str, str]]:
    with (study / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def results(study: Path) -> dict[str, bytes]:
    """What a search leaves, byte by byte."""
    names = ["trials.csv", "best.yaml", "search.html", "space.yaml", "config.yaml", "split.csv"]
    runs = sorted((study / "runs").rglob("metrics.csv"))
    return {name: (study / name).read_bytes() for name in names} | {
        str(path.relative_to(study)): path.read_bytes() for path in runs
    }


class Wellformed(HTMLParser):
    """Whether every element that is opened is closed."""

    VOID = frozenset({"meta", "br", "img", "rect", "line", "circle", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_a_search_ends_in_a_config_that_repeats_its_best_trial(
    place: Path, data: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--study", "연구 ?", "--trials", "3"]) == 0
    out = capsys.readouterr().out
    study = place / "연구 ?"
    found = rows(study)
    assert [row["trial"] for row in found] == ["1", "2", "3"]
    assert [row["state"] for row in found] == ["complete"] * 3
    assert (found[0]["lr"], found[0]["clip_norm"]) == ("0.005", "1.0")  # the config as it is
    assert len({row["lr"] for row in found}) == 3
    scores = [float(row["macro_f1"]) for row in found]
    best = scores.index(max(scores)) + 1
    assert f"best: trial {best} of 3, macro F1 {max(scores):.4f}" in out
    assert out.splitlines()[-1] == "next: maskcls-train --config '연구 ?/best.yaml'"
    assert re.search(r"^warning: the best of 3 scores .* flatters", out, flags=re.MULTILINE)
    # A trial is an ordinary training, with its metrics.
    run = study / "runs" / "age" / f"trial-{best:03d}"
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        epochs = [float(row["macro_f1"]) for row in csv.DictReader(file)]
    assert max(epochs) == max(scores)
    assert {"best.pt", "last.pt", "report.html"} <= {path.name for path in run.iterdir()}
    # Training with the best config does the same once more.
    assert train_main(["--config", str(study / "best.yaml")]) == 0
    again = place / "runs" / "age" / "exp"
    assert (again / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    page = (study / "search.html").read_text(encoding="utf-8")
    parser = Wellformed()
    parser.feed(page)
    assert not parser.open
    assert "flatters" in page and f"{max(scores):.4f}" in page


def test_a_study_on_the_built_in_sample_trains_beside_it() -> None:
    """A network that knows cartoons only is not to be taken by `--model runs`."""
    apart = resolve("age", "scratch", flags={"model_dir": "runs/sample"})
    assert yaml.safe_load(settings_yaml(apart))["model_dir"] == "runs/sample"
    usual = yaml.safe_load(settings_yaml(resolve("age", "scratch")))
    assert "model_dir" not in usual and "name" not in usual


def test_a_second_call_goes_on_and_needs_no_options(
    place: Path, options: list[str], fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--study", "whole", "--trials", "3", "--epochs", "1"]) == 0
    assert main([*options, "--study", "parts", "--trials", "1", "--epochs", "1"]) == 0
    assert main(["--study", "parts", "--trials", "3"]) == 0
    assert results(place / "parts") == results(place / "whole")
    capsys.readouterr()
    assert main(["--study", "parts", "--trials", "3"]) == 0  # there is nothing to do
    assert "trial 4" not in capsys.readouterr().out
    # Another config or space is another study.
    line = fails(["--study", "parts", "--trials", "4", "--batch-size", "8"], 1)
    assert "batch_size 8 (the study has 16)" in line
    assert "is a study of task age, not mask" in fails(
        ["--study", "parts", "--trials", "4", "--task", "mask"], 1
    )
    (place / "other.yaml").write_text(SPACE.replace("0.02", "0.03"), encoding="utf-8")
    line = fails(["--study", "parts", "--trials", "4", "--space", "other.yaml"], 1)
    assert "other.yaml differs" in line
    assert len(rows(place / "parts")) == 3


def test_other_people_are_refused(
    place: Path, data: Path, options: list[str], fails: Fails
) -> None:
    assert main([*options, "--study", "study", "--trials", "1", "--epochs", "1"]) == 0
    before = results(place / "study")
    moved = place / "moved"
    shutil.copytree(data, moved)
    more = ["--study", "study", "--trials", "2", "--data-dir", str(moved)]
    gone = sorted((moved / "images").iterdir())[0]
    gone.rename(place / gone.name)
    table = (moved / "train.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in table if gone.name not in line]
    (moved / "train.csv").write_text("".join(kept), encoding="utf-8")
    assert "the data have changed since the study began" in fails(more, 1)
    assert results(place / "study") == before
    # With everybody back it goes on, in another folder too.
    (place / gone.name).rename(gone)
    (moved / "train.csv").write_text("".join(table), encoding="utf-8")
    assert main(more) == 0
    assert [row["state"] for row in rows(place / "study")] == ["complete"] * 2


@pytest.fixture
def learnable(place: Path, options: list[str]) -> list[str]:
    """The same with people enough to learn from, at rates of which the lowest teach nothing."""
    people = make_sample(place / "people", people=30, eval_people=6, progress=False) / "train"
    text = "lr: {low: 0.0001, high: 0.02, log: true}\n"
    (place / "space.yaml").write_text(text, encoding="utf-8")
    more = ["--augmentation", "BaseAugmentation", "--epochs", "2", "--batch-size", "8"]
    return [*options, "--data-dir", str(people), *more]


def test_trials_that_fall_behind_are_pruned(
    place: Path, learnable: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*learnable, "--study", "median", "--trials", "7", "--only-best"]) == 0
    assert "pruned, as it is behind the others" in capsys.readouterr().out
    found = rows(place / "median")
    pruned = [row for row in found if row["state"] == "pruned"]
    complete = [row for row in found if row["state"] == "complete"]
    assert pruned and len(complete) >= 5
    runs = place / "median" / "runs" / "age"
    for row in pruned:
        run = runs / f"trial-{int(row['trial']):03d}"
        epochs = len((run / "metrics.csv").read_text(encoding="utf-8").splitlines()) - 1
        assert epochs == int(row["epochs"]) < 2
        assert not (run / "report.html").exists()  # nobody asks
    best = max(complete, key=lambda row: float(row["macro_f1"]))
    kept = {path.parent.name for path in runs.rglob("*.pt")}
    assert kept == {f"trial-{int(best['trial']):03d}"}
    assert "What mattered" in (place / "median" / "search.html").read_text(encoding="utf-8")
    # The same trials, each to its end.
    first = pruned[0]["trial"]
    argv = [*learnable, "--study", "none", "--trials", first, "--pruner", "none"]
    assert main(argv) == 0
    assert {(row["state"], row["epochs"]) for row in rows(place / "none")} == {("complete", "2")}
    assert rows(place / "none")[-1]["lr"] == pruned[0]["lr"]


def test_hyperband(place: Path, learnable: list[str]) -> None:
    argv = [*learnable, "--study", "study", "--trials", "5", "--pruner", "hyperband"]
    assert main(argv) == 0
    assert {"pruned", "complete"} == {row["state"] for row in rows(place / "study")}


def test_a_failed_trial_says_why_and_the_search_goes_on(
    place: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A rate of 99 makes the loss NaN; mixup and cutmix of 0.6 do not go together.
    text = "lr: [0.005, 99.0]\nmixup: [0.0, 0.6]\ncutmix: [0.0, 0.6]\n"
    (place / "space.yaml").write_text(text, encoding="utf-8")
    argv = [*options, "--optimizer", "sgd", "--clip-norm", "0", "--epochs", "1"]
    assert main([*argv, "--study", "study", "--trials", "12"]) == 0
    found = rows(place / "study")
    assert len(found) == 12
    reasons = {row["reason"] for row in found if row["state"] == "failed"}
    assert any("the loss is nan" in reason or "the loss is inf" in reason for reason in reasons)
    assert any("cutmix 0.6: must be from 0 to 1 - mixup" in reason for reason in reasons)
    for row in found:
        assert (row["state"] == "failed") == bool(row["reason"])
    assert any(row["state"] == "complete" for row in found)


def test_too_many_failures_end_the_search(
    place: Path, options: list[str], fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*args: object, **kwargs: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(engines, "predict_logits", no_memory)
    line = fails([*options, "--study", "study", "--trials", "9", "--epochs", "1"], 1)
    assert "5 trials in a row have failed, the last one with" in line
    assert "can't allocate memory" in line
    assert [row["state"] for row in rows(place / "study")] == ["failed"] * 5
    assert not (place / "study" / "best.yaml").exists()


def signal_at(step: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends this process a signal before the step of that number, of all trials together."""
    real, count = handlers.seed_step, 0

    def counted(seed: int, iteration: int) -> None:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), number)
        real(seed, iteration)

    monkeypatch.setattr(handlers, "seed_step", counted)


@pytest.mark.skipif(sys.platform == "win32", reason="signals end differently there")
@pytest.mark.parametrize(
    ("number", "step", "ended"),
    [
        (signal.SIGINT, 3 * STEPS + 2, 1),  # in the second trial's second epoch
        (signal.SIGTERM, 3 * STEPS, 1),  # in the last step of its first one
        (signal.SIGINT, 4 * STEPS, 2),  # too late to end it, not too late for the search
    ],
)
def test_a_signal_ends_the_search_and_it_goes_on(
    place: Path,
    options: list[str],
    capsys: pytest.CaptureFixture[str],
    number: int,
    step: int,
    ended: int,
) -> None:
    argv = [*options, "--pruner", "none", "--only-best", "--workers", "1", "--minutes", "600"]
    assert main([*argv, "--study", "whole", "--trials", "3"]) == 0
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            signal_at(step, number, patch)
            if number == signal.SIGTERM:
                with pytest.raises(SystemExit) as caught:
                    main([*argv, "--study", "study", "--trials", "3"])
                assert caught.value.code == 143
            else:
                assert main([*argv, "--study", "study", "--trials", "3"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    out = capsys.readouterr().out
    again = "--study study --trials 3 --minutes 600 --pruner none --only-best --workers 1"
    assert f"interrupted; go on with: maskcls-search {again}\n" in out
    assert "--resume" not in out
    assert len(rows(place / "study")) == ended
    assert main(again.split()) == 0
    went_on = "resuming study/runs/age/trial-002 after epoch 1" in capsys.readouterr().out
    assert went_on == (ended == 1)
    assert results(place / "study") == results(place / "whole")


KILLED = f"""
import os, signal, sys
from matplotlib.figure import Figure
from maskcls.commands.search import main
from maskcls.training import handlers

handlers.confusion_figure = handlers.grid_image = lambda *_: Figure((1, 1), dpi=8)
real, count = handlers.seed_step, 0

def step(seed, number):
    global count
    count += 1
    if count == {3 * STEPS + 2}:
        os.kill(os.getpid(), signal.SIGKILL)
    real(seed, number)

handlers.seed_step = step
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_a_killed_search_goes_on_as_if_nothing_had_been(
    place: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--study", "whole", "--trials", "3"]) == 0
    argv = [*options, "--study", "study", "--trials", "3"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *argv],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(rows(place / "study")) == 1
    # And, as after a power failure, half a line at the journal's end.
    with (place / "study" / "study.journal").open("ab") as journal:
        journal.write(b'{"op_code": 7, "worker_id": "')
    capsys.readouterr()
    assert main(["--study", "study", "--trials", "3"]) == 0
    assert "resuming study/runs/age/trial-002 after epoch 1" in capsys.readouterr().out
    assert results(place / "study") == results(place / "whole")
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    backend = JournalFileBackend(str(place / "study" / "study.journal"))
    study = optuna.load_study(study_name="search", storage=JournalStorage(backend))
    states = [trial.state.name for trial in study.get_trials()]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]  # none is left running


def test_what_a_trial_was_to_be_survives_a_kill_while_it_is_noted(
    place: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one, of the config as it is."""
    from optuna.trial import Trial

    assert main([*options, "--study", "whole", "--trials", "1"]) == 0
    real, noted = Trial._suggest, []

    def suggest(trial: Trial, name: str, distribution: Any) -> Any:
        if noted:
            raise KeyboardInterrupt
        noted.append(name)
        return real(trial, name, distribution)

    with monkeypatch.context() as patch:
        patch.setattr(Trial, "_suggest", suggest)
        assert main([*options, "--study", "study", "--trials", "1"]) == 130
    assert main(["--study", "study", "--trials", "1"]) == 0
    assert results(place / "study") == results(place / "whole")


def test_steps_are_written_as_they_are_meant(place: Path, options: list[str]) -> None:
    # The sum of 0.2 and 0.1 is 0.30000000000000004.
    (place / "space.yaml").write_text("clip_norm: {low: 0.2, high: 0.4, step: 0.1}\n")
    argv = [*options, "--study", "study", "--trials", "4", "--epochs", "1"]
    assert main(argv) == 0
    assert "0.3" in {row["clip_norm"] for row in rows(place / "study")}


def test_minutes(place: Path, options: list[str]) -> None:
    argv = [*options, "--study", "study", "--epochs", "1"]
    assert main([*argv, "--minutes", "0.0001"]) == 0
    assert len(rows(place / "study")) == 1


def test_what_a_search_refuses(place: Path, options: list[str], fails: Fails) -> None:
    argv = [*options, "--study", "study"]
    assert "a search needs an end" in fails(argv, 2)
    assert "--trials 0: must be 1 or more" in fails([*argv, "--trials", "0"], 2)
    assert "--minutes nan: must be above 0" in fails([*argv, "--minutes", "nan"], 2)
    argv += ["--trials", "1"]
    assert "unknown task 'all'" in fails([*argv, "--task", "all"], 2)
    (place / "list.yaml").write_text("task: [age]\n")
    assert "unknown task" in fails(["--study", "s", "--trials", "1", "--config", "list.yaml"], 2)
    assert "no.yaml: No such file" in fails([*argv, "--space", "no.yaml"], 2)
    (place / "space.yaml").write_text("lr: [0.1, 0.2]\nmodle: [base, vgg19]\n")
    assert "space.yaml, line 2: unknown key 'modle'" in fails(argv, 2)
    assert not (place / "study").exists()
    (place / "space.yaml").write_text(SPACE)
    (place / "study").mkdir()
    (place / "study" / "mine.txt").write_text("")
    assert "study: holds other files" in fails(argv, 1)
    assert {path.name for path in (place / "study").iterdir()} == {"mine.txt"}


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("space.yaml", "clip_norm: [0.0, 1.0]\n", "", "another space"),
        ("space.yaml", "clip_norm: [0.0, 1.0]", "clip_norm: [0.0, 2.0]", "another space"),
        ("space.yaml", "clip_norm", "momentum: {low: 0.8, high: 0.95}\nclip_norm", "another space"),
        ("config.yaml", "epochs: 1\n", "epochs: 2\n", "epochs 2 (the study has 1)"),
    ],
)
def test_a_study_that_was_edited_is_refused(
    place: Path, options: list[str], fails: Fails, file: str, old: str, new: str, message: str
) -> None:
    argv = ["--study", "study", "--trials", "2"]
    assert main([*options, "--study", "study", "--trials", "1", "--epochs", "1"]) == 0
    path = place / "study" / file
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")
    before = results(place / "study")
    assert message in fails(argv, 1)
    assert results(place / "study") == before
    path.write_text(f"# what is tried\n{text}", "utf-8")  # says the same
    assert main(argv) == 0


def test_damage_is_told(place: Path, options: list[str], fails: Fails) -> None:
    argv = [*options, "--study", "study", "--trials", "1", "--epochs", "1"]
    assert main(argv) == 0
    journal = place / "study" / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(b"{}\n" + whole)
    assert "study.journal: damaged" in fails(argv, 1)
    journal.write_bytes(whole[:40] + b"\n" + whole[40:])
    assert "study.journal: damaged" in fails(argv, 1)
    journal.write_bytes(whole)
    (place / "study" / "config.yaml").write_text("task: nothing\n")
    assert "study: a damaged study: unknown task 'nothing'" in fails(argv, 1)


def test_two_processes_do_not_search_in_one_study(
    place: Path, options: list[str], fails: Fails
) -> None:
    from maskcls.files import locked

    argv = [*options, "--study", "study", "--trials", "1", "--epochs", "1"]
    with locked(place / "study" / ".lock", lambda: pytest.fail("free")):
        assert "study: another process is searching in it" in fails(argv, 1)
    assert main(argv) == 0


def test_without_optuna_the_extra_is_named(place: Path, options: list[str]) -> None:
    code = (
        "import sys; sys.modules['optuna'] = None\n"
        "from maskcls.commands.search import main; raise SystemExit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *options, "--study", "study", "--trials", "1"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: this command needs the package 'optuna': pip install 'maskcls[search]'\n"
    )
    assert not (place / "study").exists()


def test_the_built_in_space_is_shown_and_kept(
    place: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*options[:4], "--study", "study", "--trials", "2", "--epochs", "1"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    space = (place / "study" / "space.yaml").read_text(encoding="utf-8")
    assert "lr: {low: 0.001, high: 0.025, log: true}\n" in space
    assert all(f"  {line}\n" in out for line in space.splitlines())
    assert read_yaml(place / "study" / "config.yaml")["task"] == "age"
    assert read_yaml(place / "study" / "config.yaml")["precision"] in ("fp32", "bf16")
    assert len(rows(place / "study")) == 2


def test_a_search_learns_from_its_trials(
    place: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings that score the higher the nearer their rate is to 0.003."""
    away: list[float] = []
    (place / "space.yaml").write_text("lr: {low: 0.00001, high: 1.0, log: true}\n", "utf-8")

    def train(config: TrainConfig, say: object, *, epoch_ended: Any, **_: Any) -> SimpleNamespace:
        folder = Path(config.model_dir) / config.task / str(config.name)
        folder.mkdir(parents=True)
        (folder / "split.csv").write_text("person,side\n", "utf-8")
        score = 1 - abs(math.log10(config.lr / 0.003)) / 5
        for epoch in (1, 2):
            epoch_ended(epoch, score)
        away.append(1 - score)
        return SimpleNamespace(best_score=score)

    monkeypatch.setattr(searching, "train", train)
    monkeypatch.setattr(searching, "write_results", lambda *_: None)  # takes most of the time
    monkeypatch.setattr(searching, "importances", lambda _: {})
    argv = [*options, "--study", "peak", "--trials", "40", "--pruner", "none"]
    assert main(argv) == 0
    assert len(away) == 40
    assert statistics.median(away[20:]) < statistics.median(away[:10]) / 2
