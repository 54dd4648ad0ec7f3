"""maskcls-demo with a model: what it refuses, what it writes, and what it serves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from maskcls.commands.demo import main
from maskcls.manifest import ENSEMBLE, OnnxManifest
from maskcls.runtime.session import read_onnx
from maskcls.web.site import OWN_FILES, describe, facts, write_site

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("page")]


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_a_single_network_is_refused(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(exported / "age.onnx")]) == 1
    error = error_of(capsys)
    assert "age.onnx: the network age alone" in error and "give the fused file, maskcls" in error


def test_not_fetched(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(exported), "--cache", str(tmp_path)]) == 1
    assert "fetch it once with maskcls-demo --fetch" in error_of(capsys)


def test_files_for_a_web_server(
    exported: Path, site: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "얼굴"
    assert main(["--model", str(exported), "--out", str(out)]) == 0
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written == set(site)
    assert set(OWN_FILES) < written
    assert all((out / name).read_bytes() == content for name, content in site.items())
    assert "next: python -m http.server --bind 127.0.0.1 --directory" in capsys.readouterr().out


def test_the_page_names_no_other_place(site: dict[str, bytes]) -> None:
    """Of our own files: onnxruntime-web's are held by the page's policy."""
    for name in OWN_FILES:
        addresses = set(re.findall(r"\w+://[^\s\"'<>]+", site[name].decode()))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name
    assert b"{{" not in site["index.html"]


def test_what_the_page_says_of_the_model(exported: Path) -> None:
    file = read_onnx(exported / "maskcls.onnx")
    said = describe(file)
    assert OnnxManifest.from_json(json.dumps(said["manifest"])) == file.manifest
    found = dict(said["facts"])
    for title, size in (("Mask and gender", "48 × 40"), ("Age", "40 × 32")):
        about = found[title]
        assert size in about and "calibrated" in about and "mirror image" in about
    assert found["Compared with PyTorch"].startswith("0 of ")
    assert found["sha256"] == file.sha256
    assert str(exported) not in json.dumps(said)


def test_what_it_says_of_networks_made_one(exported: Path) -> None:
    manifest = read_onnx(exported / "maskcls.onnx").manifest
    age = manifest.networks[1]
    uncalibrated = replace(age, calibration=None, config={**age.config, "tta": "none"})
    for members, alike in (([age, age], True), ([age, uncalibrated], False)):
        whole = replace(
            uncalibrated,
            model=ENSEMBLE,
            model_args={"members": [member.to_dict() for member in members]},
        )
        described = replace(manifest, networks=(manifest.networks[0], whole))
        about = facts(described, "")["Age"]
        assert about.startswith("the mean of 2 networks, base, 40 × 32 pixels")
        assert ("calibrated" in about, "mirror image" in about) == (alike, alike)


def test_the_folder_cannot_be_written(site: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_site(site, tmp_path / "file")


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_it_serves_until_it_is_interrupted(exported: Path, fetched: Path) -> None:
    command = [sys.executable, str(ROOT / "cli" / "demo.py"), "--model", str(exported)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a shell, processes are born deaf to it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"the page is at (http://127\.0\.0\.1:\d+/) for browsers on this", line)
        assert found, process.stderr.read() if process.stderr else line
        with urllib.request.urlopen(found[1] + "model.json") as answer:
            described = json.load(answer)
        assert described["bytes"] == (exported / "maskcls.onnx").stat().st_size
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert error == "interrupted\n"
