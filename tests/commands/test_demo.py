"""maskcls-demo: what it refuses before there is a model. The rest is in tests/web/test_site.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskcls.commands.demo import main


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "--model is missing; give the maskcls.onnx" in error_of(capsys)


@pytest.mark.parametrize("port", ["-1", "65536", "http", "80.5", "²"])
def test_no_port(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--model", "maskcls.onnx", f"--port={port}"])
    assert "is not a port, a whole number from 0 to 65535" in capsys.readouterr().err


def test_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tmp_path / "none.onnx")]) == 1
    assert "none.onnx: No such file" in error_of(capsys)
    (tmp_path / "maskcls.onnx").write_bytes(b"text")
    assert main(["--model", str(tmp_path)]) == 1  # a folder: the file of that name in it
    assert "maskcls.onnx: damaged, truncated or no ONNX file" in error_of(capsys)


def test_a_page_of_no_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "site"
    assert main(["--fetch", "package.tgz", "--out", str(out)]) == 2
    assert "--out: which networks the page is of is missing" in error_of(capsys)
    assert not out.exists()


def test_no_package_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--cache", str(tmp_path / "cache"), "--fetch", str(tmp_path / "package.tgz")]
    assert main(arguments) == 1
    assert "package.tgz: No such file or directory" in error_of(capsys)
