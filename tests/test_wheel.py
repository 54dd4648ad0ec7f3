"""The wheel and the sdist: what is in them, and that the commands run once they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from configparser import ConfigParser
from email import message_from_string
from pathlib import Path

import pytest

import maskcls

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    *("maskcls", "cli", "export", "benchmarks", "tests"),
    *("setup.py", "pyproject.toml", "README.md", "LICENSE"),
)
COMMANDS = {
    "maskcls-train": "maskcls.commands.train:main",
    "maskcls-infer": "maskcls.commands.infer:main",
    "maskcls-evaluate": "maskcls.commands.evaluate:main",
    "maskcls-data": "maskcls.commands.data:main",
    "maskcls-export": "maskcls.commands.export:main",
    "maskcls-combine": "maskcls.commands.combine:main",
    "maskcls-doctor": "maskcls.commands.doctor:main",
    "maskcls-demo": "maskcls.commands.demo:main",
    "maskcls-completion": "maskcls.commands.completion:main",
    "maskcls-search": "maskcls.commands.search:main",
}

# One worker builds, the others would only do it again.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


def run(*arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    command = [str(argument) for argument in arguments]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves build/ and *.egg-info in the folder it builds from, and
    what an earlier build left there would get into the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "clone"
    copy.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, copy / name)
    # Both: the wheel is built from what the sdist holds.
    run(
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        folder / "out",
        copy,
        cwd=folder,
    )
    (built,) = (folder / "out").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A folder with the wheel and nothing else; the dependencies are those of this environment."""
    target = wheel.parent.parent / "installed"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run(*pip, "--no-deps", "--no-index", "--target", target, wheel, cwd=wheel.parent)
    return target


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def dist_info(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"maskcls-{maskcls.__version__}.dist-info/{name}").decode()


def test_only_the_package_is_shipped(wheel: Path) -> None:
    top = {name.partition("/")[0] for name in names_in(wheel)}
    assert top == {"maskcls", f"maskcls-{maskcls.__version__}.dist-info"}


def test_every_file_of_the_package_is_shipped(wheel: Path) -> None:
    clone = wheel.parent.parent / "clone"
    files = {
        path.relative_to(clone).as_posix()
        for path in (clone / "maskcls").rglob("*")
        if path.is_file()
    }
    assert {name for name in names_in(wheel) if name.startswith("maskcls/")} == files
    assert "maskcls/py.typed" in files
    assert "maskcls/web/static/index.html" in files


def test_the_sdist_has_what_the_wheel_is_built_from(wheel: Path) -> None:
    stem = f"maskcls-{maskcls.__version__}"
    with tarfile.open(wheel.parent / f"{stem}.tar.gz") as archive:
        names = set(archive.getnames())
    assert {f"{stem}/{name}" for name in names_in(wheel) if name.startswith("maskcls/")} <= names
    others = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "PKG-INFO")
    assert {f"{stem}/{name}" for name in others} <= names


def test_metadata(wheel: Path) -> None:
    metadata = message_from_string(dist_info(wheel, "METADATA"))
    assert metadata["Name"] == "maskcls"
    assert metadata["Version"] == maskcls.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "runtime",
        "runtime-gpu",
        "train",
        "bench",
        "docs",
        "parquet",
        "ray",
        "completion",
        "search",
        "wandb",
        "mlflow",
        "clearml",
        "all",
        "dev",
    }


def test_entry_points_are_the_commands(wheel: Path) -> None:
    entries = ConfigParser()
    entries.read_string(dist_info(wheel, "entry_points.txt"))
    assert {section: dict(entries[section]) for section in entries.sections()} == {
        "console_scripts": COMMANDS
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_installed_command_runs(command: str, installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    found = run(
        *(sys.executable, "-c", "import maskcls; print(maskcls.__file__)"),
        env=environment,
        cwd=tmp_path,
    )
    assert Path(found.strip()).is_relative_to(installed)
    out = run(installed / "bin" / command, "--help", env=environment, cwd=tmp_path)
    assert out.startswith(f"usage: {command}")
