"""Nothing is fetched or sent while training, exporting, labelling and scoring."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import maskcls

ROOT = Path(maskcls.__file__).parents[1]

OFFLINE = """
import sys

CALLS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto",
         "urllib.Request", "http.client.connect")

def refuse(event, arguments):
    if event in CALLS:
        print("NETWORK:", event, arguments, flush=True)
        sys.exit("network")

sys.addaudithook(refuse)
"""
PIPELINE = """
from maskcls.commands import data, evaluate, export, infer, train

def run(main, *argv):
    assert main(list(argv)) == 0, argv

size = ("--model", "base", "--height", "32", "--width", "32", "--batch-size", "16")
run(data.main, "sample", "--out", "sample", "--people", "12", "--eval-people", "6")
run(data.main, "check", "sample/train")
run(train.main, "--task", "all", "--data-dir", "sample/train", "--weights", "none",
    "--epochs", "1", "--cache", "cache", "--device", "cpu", *size)
run(export.main, "--model-dir", "runs", "--out", "onnx")
for model in ("runs", "onnx/maskcls.onnx"):
    run(infer.main, "--model", model, "--images", "sample/eval", "--out", "output.csv",
        "--provider", "cpu")
run(evaluate.main, "--gt", "sample/eval/gt.csv", "--pred", "output.csv")
"""


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", f"{OFFLINE}sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_whole_way_without_a_network(tmp_path: Path) -> None:
    done = python(PIPELINE, tmp_path)
    assert "NETWORK" not in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.getaddrinfo('localhost', 80)",
    ],
)
def test_the_guard_notices_a_call(tmp_path: Path, code: str) -> None:
    done = python(code, tmp_path)
    assert "NETWORK" in done.stdout
    assert done.returncode == 1
