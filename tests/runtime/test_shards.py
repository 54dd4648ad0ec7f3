"""Shards, joined, are the bytes of one run; and nothing else is joined."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import onnx
import pytest

from maskcls.commands.infer import main
from maskcls.provenance import provenance_path
from maskcls.runtime import Shard, labelling
from maskcls.runtime.parts import parts_path
from tests.runtime.test_session import network

COUNT = 21  # pictures of the fixture


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(labelling, "PART", 4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def argv(networks: list[str], photos: Path) -> list[str]:
    return [
        *("--model", *networks, "--images", str(photos), "--provider", "cpu"),
        *("--batch-size", "2", "--probabilities"),
    ]


def label(argv: list[str], count: int, suffix: str = "csv") -> list[str]:
    """The outputs of all shards."""
    outs = [f"part-{number}.{suffix}" for number in range(1, count + 1)]
    for number, out in enumerate(outs, 1):
        assert main([*argv, "--shard", f"{number}/{count}", "--out", out]) == 0
    return outs


def fails(argv: list[str], capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    capsys.readouterr()
    assert main(argv) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("pictures", [0, 1, 7, 64, 1001])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_shards_are_whole_batches_and_leave_nothing_out(
    pictures: int, batch_size: int, count: int
) -> None:
    parts = [Shard(n, count).bounds(pictures, batch_size) for n in range(1, count + 1)]
    assert [index for part in parts for index in range(pictures)[part]] == list(range(pictures))
    assert all(part.start % batch_size == 0 for part in parts if part.start < pictures)
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) < 2 * batch_size


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_joined_shards_are_the_bytes_of_one_run(
    argv: list[str], capsys: pytest.CaptureFixture[str], suffix: str, count: int
) -> None:
    whole, joined = Path(f"whole.{suffix}"), Path(f"joined.{suffix}")
    assert main([*argv, "--out", str(whole)]) == 0
    told = capsys.readouterr()
    outs = label(argv, count, suffix)
    assert f"--merge joins all {count} shards" in capsys.readouterr().out
    assert main(["--merge", *reversed(outs), "--out", str(joined)]) == 0
    assert joined.read_bytes() == whole.read_bytes()
    assert provenance_path(joined).read_bytes() == provenance_path(whole).read_bytes()
    again = capsys.readouterr()
    assert again.out.splitlines() == [told.out.splitlines()[-1].replace("whole", "joined")]
    assert again.err == told.err
    assert "2 pictures could not be read" in again.err


def test_joined_csv_with_formulas_escaped_and_names_that_are_no_text(
    argv: list[str], photos: Path
) -> None:
    shutil.copy(photos / "01.png", photos / "=1+1.png")
    shutil.copy(photos / "01.png", photos / "a\rb.png")
    try:
        shutil.copy(photos / "01.png", photos / "bad\udce9.png")
    except (OSError, UnicodeError):
        pytest.skip("this file system has only names that are text")
    argv.append("--escape-formulas")
    assert main([*argv, "--out", "whole.csv"]) == 0
    assert main(["--merge", *label(argv, 5), "--out", "joined.csv"]) == 0
    joined = Path("joined.csv").read_bytes()
    assert joined == Path("whole.csv").read_bytes()
    assert b"'=1+1.png" in joined and b"bad\xe9.png" in joined
    assert main([*argv, "--out", "whole.parquet"]) == 0
    assert main(["--merge", *label(argv, 5, "parquet"), "--out", "joined.parquet"]) == 0
    assert Path("joined.parquet").read_bytes() == Path("whole.parquet").read_bytes()


def test_a_shard_that_was_interrupted_goes_on(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, "--out", "whole.csv"]) == 0
    first, second = label(argv, 2)
    once = Path(second).read_bytes()
    os.remove(second)
    real = labelling.predict
    calls: list[int] = []

    def interrupted(*args: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(labelling, "predict", interrupted)
    shard = [*argv, "--shard", "2/2", "--out", second]
    assert main(shard) == 130
    monkeypatch.setattr(labelling, "predict", real)
    assert parts_path(Path(second)).exists()
    other = [*argv, "--shard", "1/2", "--out", second, "--resume"]
    assert "of another job" in fails(other, capsys)
    assert main([*shard, "--resume"]) == 0
    assert Path(second).read_bytes() == once
    assert main(["--merge", first, second, "--out", "joined.csv"]) == 0
    assert Path("joined.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_a_missing_shard_is_named(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = label(argv, 3)
    line = fails(["--merge", first, third, "--out", "o.csv"], capsys)
    assert "missing: 2/3; label with --shard 2/3" in line
    line = fails(["--merge", first, third, first, "--out", "o.csv"], capsys)
    assert "are both shard 1/3" in line
    assert "no such file" in fails(["--merge", first, "gone.csv", "--out", "o.csv"], capsys)
    os.remove(f"{second}.json")
    line = fails(["--merge", first, second, third, "--out", "o.csv"], capsys)
    assert f"{second}: without its {second}.json" in line
    with open(third, "a") as file:
        file.write("x.png,3\n")
    assert "changed since" in fails(["--merge", first, third, "--out", "o.csv"], capsys)
    assert not Path("o.csv").exists()


def test_shards_of_different_jobs_are_not_joined(
    argv: list[str], photos: Path, networks: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = label(argv, 2)

    def refused(*changes: str, count: int = 2) -> str:
        assert main([*argv, *changes, "--shard", f"2/{count}", "--out", "other.csv"]) == 0
        return fails(["--merge", first, "other.csv", "--out", "o.csv"], capsys)

    assert "different --batch-size" in refused("--batch-size", "3")
    assert "different --escape-formulas" in refused("--escape-formulas")
    assert "different numbers of shards" in refused(count=3)
    plain = [option for option in argv if option != "--probabilities"]
    assert main([*plain, "--shard", "2/2", "--out", "other.csv"]) == 0
    line = fails(["--merge", first, "other.csv", "--out", "o.csv"], capsys)
    assert "different columns (--probabilities)" in line
    onnx.save(network("age", precision="fp16"), "age16.onnx")
    assert "different models" in refused("--model", networks[0], "age16.onnx")
    (photos / "01.png").rename(photos / "01b.png")
    assert "different lists of pictures" in refused()
    assert not Path("o.csv").exists()


def test_what_else_is_no_shard(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = label(argv, 2)
    assert main([*argv, "--out", "whole.csv"]) == 0
    assert "labelled without --shard" in fails(["--merge", "whole.csv", "--out", "o.csv"], capsys)
    assert "is one of the shards" in fails(["--merge", first, second, "--out", first], capsys)
    assert "name it .csv" in fails(["--merge", first, second, "--out", "o.parquet"], capsys)
    line = fails(["--merge", first, "--out", "o.csv", "--model", "m.onnx"], capsys, code=2)
    assert "leave --model out" in line
    ignored = ["--escape-formulas", "--probabilities", "--info", "i.csv", "--strict", "--resume"]
    ignored += ["--engine", "ray", "--partition-size", "5", "--provider", "cpu"]
    line = fails(["--merge", first, second, "--out", "o.csv", *ignored], capsys, code=2)
    assert all(option in line for option in ignored if option.startswith("--"))
    assert not Path("o.csv").exists()
    for text in ("0/2", "3/2", "1", "a/b", "1/2/3"):
        with pytest.raises(SystemExit) as caught:
            main([*argv, "--out", "o.csv", "--shard", text])
        assert caught.value.code == 2
        assert "is not I/N" in capsys.readouterr().err


def test_a_shard_may_be_all_bad_but_not_all_of_them(
    argv: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = sorted(photos.iterdir())[-3]
    for picture in photos.iterdir():
        if picture != good:
            picture.write_bytes(b"bad")
    assert main(["--merge", *label(argv, 3), "--out", "joined.csv"]) == 0
    with open("joined.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["ImageID"] for row in rows if not row["error"]] == [good.name]
    assert json.loads(Path("joined.csv.json").read_text())["errors"] == COUNT - 1
    good.write_bytes(b"bad")
    line = fails(["--merge", *label(argv, 3), "--out", "none.csv"], capsys)
    assert f"none of {COUNT} pictures can be read" in line
    assert not Path("none.csv").exists()
