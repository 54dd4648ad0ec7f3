"""The benchmark runs as a process of its own, and its figures hang together. Their size is not
tested: that is the machine's affair."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "convolutions.py"


@pytest.mark.slow
def test_smallest_settings(
    run_script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    options = "--model resnet18 --height 32 --width 32 --batch-size 4 --runs 3 --json figures.json"
    done = run_script(SCRIPT, *options.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert sum(row["layers"] for row in figures["shapes"]) == 20
    theirs, ours = (figures["images_per_s"][name] for name in ("PyTorch", "ours"))
    assert len(theirs) == len(ours) == 3
    assert f"| PyTorch | {statistics.median(theirs):.1f} | |" in done.stdout
    median = statistics.median(b / a for a, b in zip(theirs, ours, strict=True))
    assert f"| {median:.2f} (" in done.stdout
