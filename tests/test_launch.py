"""What several processes of torchrun would each do for themselves refuses them."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskcls.commands import search
from maskcls.config import resolve
from maskcls.errors import ConfigError
from maskcls.launch import process_number, processes_started, refuse_several
from maskcls.training import start_group, train_group


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")


def test_a_program_of_its_own_is_the_first_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (processes_started(), process_number()) == (1, 0)
    refuse_several("this")


def test_several_are_counted(two: None) -> None:
    assert (processes_started(), process_number()) == (2, 1)
    with pytest.raises(ConfigError, match=r"^this cannot be shared by the 2 processes of torchrun"):
        refuse_several("this")


def test_groups_of_folds_refuse_them(two: None, tmp_path: Path) -> None:
    config = resolve("age", "scratch", flags={"folds": 3, "model_dir": str(tmp_path)})
    with pytest.raises(ConfigError, match="a group of folds cannot be shared by the 2 processes"):
        start_group(config)
    with pytest.raises(ConfigError, match="a group of folds cannot be shared by the 2 processes"):
        train_group(tmp_path)
    assert not list(tmp_path.iterdir())


def test_searches_refuse_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert search.main(["--study", str(tmp_path / "study"), "--trials", "1"]) == 2
    said = "error: a search cannot be shared by the 2 processes of torchrun; start it without\n"
    assert capsys.readouterr().err == said
    assert not list(tmp_path.iterdir())
