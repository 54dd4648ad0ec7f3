"""The benchmark runs as a process of its own, and its figures hang together. Their size is not
tested: that is the machine's affair."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "pixel_cache.py"


@pytest.fixture
def run(run_script: Run) -> Run:
    return lambda *options, cwd: run_script(SCRIPT, *options, cwd=cwd)


@pytest.mark.slow
def test_smallest_settings(run: Run, tmp_path: Path) -> None:
    options = (
        "--people 6 --height 32 --width 32 --batch-size 16 --runs 2 --memory --json figures.json"
    )
    done = run(*options.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["pictures"] == 6 * 7
    assert figures["input"] == [32, 32]
    assert set(figures["pairs"]) == {"pixels", "augment"}
    for pair in figures["pairs"].values():
        usual, ours = (way["images_per_s_all"] for way in pair["ways"].values())
        ratios = [b / a for a, b in zip(usual, ours, strict=True)]
        assert len(ratios) == 2
        assert pair["ratio"]["median"] == pytest.approx(statistics.median(ratios))
        assert pair["ratio"]["min"] == pytest.approx(min(ratios))
        assert pair["ratio"]["max"] == pytest.approx(max(ratios))
        for way, values in pair["ways"].items():
            assert f"| {way} | {values['images_per_s']:,.0f} |" in done.stdout
    decoded = [values["decoded"] for values in figures["training"].values()]
    assert decoded[0] == 0 and decoded[1] >= 6 * 7  # only one of them reads the pictures
    for way in figures["training"]:
        assert f"| {way} | " in done.stdout.partition("training of one epoch")[2]
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]  # nothing else is left


def test_no_runs_is_a_wrong_option(run: Run, tmp_path: Path) -> None:
    done = run("--runs", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert "--runs 0: needs at least 1" in done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_peak_of_a_process_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the process that started it, which is what `wait4` gives."""
    monkeypatch.syspath_prepend(SCRIPT.parents[1])
    from benchmarks.shared import process_bytes

    held = bytearray(b"1") * 200_000_000
    child = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    peak = process_bytes("VmHWM", child.pid)
    child.communicate(b"\n")
    assert 1e6 < peak < len(held) < process_bytes("VmHWM")
