"""The scripts in `cli/` and `export/`: they answer `--help` from anywhere, at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIMS = sorted([*(ROOT / "cli").glob("*.py"), *(ROOT / "export").glob("*.py")])
CPU_SECONDS = 1.0


def help_of(shim: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    # Without PYTHONPATH: the shim finds its clone by itself.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-X", "importtime", str(shim), "--help"],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_the_shims_are_the_commands() -> None:
    names = ["combine", "completion", "data", "doctor", "evaluate", "infer", "search", "train"]
    names.append("to_onnx")
    assert [shim.stem for shim in SHIMS] == names


@pytest.mark.parametrize("shim", SHIMS, ids=lambda shim: shim.name)
def test_help_from_another_folder(shim: Path, tmp_path: Path) -> None:
    done = help_of(shim, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, flags=re.MULTILINE))
    assert "argparse" in imported  # the list is there
    assert {name.partition(".")[0] for name in imported}.isdisjoint({"torch", "torchvision"})


@pytest.mark.parametrize("shim", SHIMS, ids=lambda shim: shim.name)
def test_help_takes_little_time(shim: Path, tmp_path: Path) -> None:
    def cpu_seconds() -> float:
        """User and system time of the process, which a busy machine does not stretch much."""
        before = os.times()
        assert help_of(shim, tmp_path).returncode == 0
        after = os.times()
        return (
            after.children_user
            + after.children_system
            - (before.children_user + before.children_system)
        )

    # The first run may have to write bytecode; the quickest of three is the command's own time.
    assert min(cpu_seconds() for _ in range(3)) < CPU_SECONDS


@pytest.mark.parametrize("shim", SHIMS, ids=lambda shim: shim.name)
def test_shim_is_commands_to_paste_and_one_call(shim: Path) -> None:
    text = shim.read_text(encoding="utf-8")
    assert re.search(rf"^    python {shim.parent.name}/{shim.name}\b", text, flags=re.MULTILINE)
    command = shim.stem.removeprefix("to_").replace("onnx", "export")
    assert f"from maskcls.commands.{command} import main\n" in text
    assert text.endswith('if __name__ == "__main__":\n    raise SystemExit(main())\n')


def test_an_unknown_option_ends_with_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli" / "evaluate.py"), "--no-such-option"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr
