"""How the benchmark of trainings reads its runs: rates, and who reached a score when."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.training import format_table, main, rate, seconds_to


def run(*ends_and_scores: tuple[float, float]) -> dict[str, Any]:
    epochs = [{"end": end, "f1": f1} for end, f1 in ends_and_scores]
    return {"pictures": 100, "peak": 1e6, "epochs": epochs, "seconds": ends_and_scores[-1][0] + 10}


def table(targets: list[float], **runs: list[dict[str, Any]]) -> str:
    sizes = {"height": 128, "width": 96, "batch_size": 16, "epochs": 3, "ema_decay": 0.0}
    machine = {"processor": "a processor", "cores": 2}
    return format_table(
        {"task": "mask", "model": "resnet18", **sizes, **machine, "targets": targets, "runs": runs}
    )


@pytest.mark.parametrize("options", ["--ema-decay 1", "--ema-decay 0 --ways timm"])
def test_averages_are_of_maskcls(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options.split()) == 2
    assert "from 0 to below 1, with --ways maskcls" in capsys.readouterr().err


def test_a_rate_leaves_the_first_epoch_out() -> None:
    assert rate(run((50, 0.1), (60, 0.2), (70, 0.3))) == 100 * 2 / 20


def test_a_score_counts_from_the_first_epoch_that_had_it() -> None:
    training = run((10, 0.5), (20, 0.8), (30, 0.7))
    assert seconds_to(training, 0.7) == 20
    assert seconds_to(training, 0.81) is None


def test_ratios_are_of_the_same_turn() -> None:
    lines = table(
        [0.7],
        maskcls=[run((10, 0.5), (20, 0.8)), run((10, 0.7), (30, 0.8))],
        original=[run((25, 0.5), (50, 0.8)), run((15, 0.5), (60, 0.7))],
    ).splitlines()
    assert "3 epochs, --ema-decay 0; a processor" in lines[0]
    # 50 / 20 and 60 / 10, where the ratio of the medians would be 55 / 15.
    assert "| 0.7 | maskcls | 2 of 2 | 15 | 1 |" in lines
    assert "| 0.7 | original's way | 2 of 2 | 55 | 4.25 (2.50–6.00) |" in lines
    # 100 pictures over 10 s against 25 s, then over 20 s against 45 s
    # and in all 60 s against 30 s, then 70 s against 40 s
    assert "| original's way | 3.1 | 2.38 (2.25–2.50) | 20.0 | 65.0 | 1.88 (1.75–2.00) |" in [
        line.rpartition(" 0.750 ")[0] for line in lines
    ]


def test_where_a_turn_never_got_there_no_median_is_shown() -> None:
    lines = table(
        [0.7, 0.9],
        maskcls=[run((10, 0.5), (20, 0.8)), run((10, 0.7), (30, 0.8))],
        original=[run((25, 0.5), (50, 0.8)), run((15, 0.5), (60, 0.6))],
    ).splitlines()
    assert "| 0.7 | original's way | 1 of 2 | – | – |" in lines
    assert "| 0.9 | maskcls | 0 of 2 | – | 1 |" in lines


def test_without_maskcls_nothing_is_compared() -> None:
    lines = table([0.7], original=[run((25, 0.5), (50, 0.8))]).splitlines()
    assert "| 0.7 | original's way | 1 of 1 | 50 | – |" in lines
