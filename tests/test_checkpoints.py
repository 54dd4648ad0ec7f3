"""Whatever happens to a checkpoint, the last good one is found, and nothing in a file is run."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
import stat
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from maskcls import checkpoints, files
from maskcls.checkpoints import (
    digest_path,
    load_plain,
    previous_path,
    read_checkpoint,
    read_manifest,
    save_checkpoint,
)
from maskcls.config import TrainConfig
from maskcls.errors import CheckpointError
from maskcls.models import load_model
from maskcls.preprocessing import PreprocessSpec


def content(step: int) -> dict[str, Any]:
    """What `read_checkpoint` takes for a checkpoint, with something to tell the saves apart."""
    return {"manifest": "{}", "model": {"w": torch.full((64,), float(step))}, "step": step}


def step_of(path: Path) -> int:
    """The step that is read back, its tensor checked; warnings are let pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        read = read_checkpoint(path)
    assert torch.equal(read["model"]["w"], torch.full((64,), float(read["step"])))
    return int(read["step"])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """`best.pt` of step 2, beside its previous save of step 1."""
    path = tmp_path / "best.pt"
    save_checkpoint(content(1), path)
    save_checkpoint(content(2), path)
    return path


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    spot = data.index(torch.full((4,), 2.0).numpy().tobytes()) + 1  # a weight's own bytes
    data[spot] ^= 4
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


DAMAGES = [flip_bit, truncate, empty, remove]
Damage = Callable[[Path], None]


# --- reading back ------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.pt"
    values = content(3) | {
        "long": torch.tensor([2**63 - 1, -(2**63)]),
        "half": torch.tensor([0.1], dtype=torch.bfloat16),
        "nested": {"list": [1, 2.5, None, "가"], "tuple": (True,)},
    }
    save_checkpoint(values, path)
    read = read_checkpoint(path)  # a warning would be an error here
    assert read.keys() == values.keys()
    for key in ("long", "half"):
        assert torch.equal(read[key], values[key]) and read[key].dtype == values[key].dtype
    assert read["nested"] == values["nested"]


def test_second_save_keeps_the_previous_and_leaves_no_other_files(saved: Path) -> None:
    assert step_of(saved) == 2
    assert step_of(previous_path(saved)) == 1
    assert sorted(path.name for path in saved.parent.iterdir()) == [
        "best.prev.pt",
        "best.prev.pt.sha256",
        "best.pt",
        "best.pt.sha256",
    ]
    save_checkpoint(content(3), saved)
    assert (step_of(saved), step_of(previous_path(saved))) == (3, 2)


def test_digest_is_what_sha256sum_writes(saved: Path) -> None:
    import hashlib

    expected = hashlib.sha256(saved.read_bytes()).hexdigest()
    assert digest_path(saved).read_text().split()[0] == expected


def test_a_file_copied_without_its_digest_loads(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "model.pt"
    copy.parent.mkdir()
    shutil.copy(saved, copy)
    assert read_checkpoint(copy)["step"] == 2


# --- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_falls_back_to_the_previous_and_says_so(saved: Path, damage: Damage) -> None:
    damage(saved)
    with pytest.warns(UserWarning) as warned:
        assert read_checkpoint(saved)["step"] == 1
    [message] = [str(warning.message) for warning in warned]
    assert f"{saved}: " in message
    assert f"taking {previous_path(saved)} instead" in message


def test_a_damaged_digest_falls_back_as_well(saved: Path) -> None:
    content = bytearray(digest_path(saved).read_bytes())
    content[3] |= 0x80  # one bit, and it is no text any more
    digest_path(saved).write_bytes(content)
    with pytest.warns(UserWarning, match=r"best\.pt: damaged.*best\.prev\.pt instead"):
        assert read_checkpoint(saved)["step"] == 1


@pytest.mark.parametrize("damage", [truncate, empty])
def test_damage_is_noticed_without_a_digest_too(saved: Path, damage: Damage) -> None:
    damage(saved)
    digest_path(saved).unlink()
    with pytest.warns(UserWarning, match="best.prev.pt instead"):
        assert read_checkpoint(saved)["step"] == 1


@pytest.mark.parametrize("damage", [truncate, empty])
def test_both_damaged_is_an_error_that_names_both(saved: Path, damage: Damage) -> None:
    damage(saved)
    damage(previous_path(saved))
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(saved)
    assert f"{saved}: damaged" in str(caught.value)
    assert f"{previous_path(saved)}: damaged" in str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "best.pt")
    assert str(caught.value) == f"{tmp_path / 'best.pt'}: no such file"


def test_a_save_over_a_damaged_file_is_read_again(saved: Path) -> None:
    flip_bit(saved)
    save_checkpoint(content(3), saved)
    assert read_checkpoint(saved)["step"] == 3


# --- crashes -----------------------------------------------------------------------------------


class Crash(BaseException):
    """As a kill: nothing catches it."""


STEPS = 12  # at least as many as a save has system calls that change a folder


def save_and_crash(step: int, path: Path, at: int) -> bool:
    """Whether the save came to its end, rather than to its `at`-th change of the folder."""
    left = [at]

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise Crash
            left[0] -= 1
            return change(*args, **options)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", counted(os.replace))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        patch.setattr(Path, "write_bytes", counted(Path.write_bytes))
        with suppress(Crash):
            save_checkpoint(content(step), path)
            return True
    return False


@pytest.mark.parametrize("at", range(STEPS))
@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_crash_at_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, before: int, at: int
) -> None:
    path = tmp_path / "last.pt"
    for step in range(1, before + 1):
        save_checkpoint(content(step), path)
    done = save_and_crash(9, path, at)
    if done:
        assert read_checkpoint(path)["step"] == 9
    elif before:
        assert step_of(path) in (before, 9)
    else:
        with suppress(CheckpointError):  # nothing was ever saved
            assert step_of(path) == 9
    save_checkpoint(content(10), path)
    assert read_checkpoint(path)["step"] == 10  # and no warning any more


def test_the_crash_tests_reach_every_step(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(content(1), path)
    save_checkpoint(content(2), path)
    ends = [save_and_crash(3, path, at) for at in range(STEPS)]
    assert ends[0] is False and ends[-1] is True
    assert ends.count(False) >= 6


@pytest.mark.parametrize("first", range(STEPS))
def test_two_crashes_one_after_the_other_never_lose_the_last_whole_save(
    tmp_path: Path, first: int
) -> None:
    for second in range(STEPS):
        path = tmp_path / str(second) / "last.pt"
        save_checkpoint(content(1), path)
        save_checkpoint(content(2), path)
        whole = 2
        for step, at in ((3, first), (4, second)):
            if save_and_crash(step, path, at):
                whole = step
        assert whole <= step_of(path) <= 4, second


def test_a_full_disk_keeps_both(saved: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            save_checkpoint({"manifest": "{}", "model": {"w": torch.ones(100_000)}}, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "best.pt" in str(caught.value.filename)
    assert read_checkpoint(saved)["step"] == 2
    assert read_checkpoint(previous_path(saved))["step"] == 1
    assert len(list(saved.parent.iterdir())) == 4


def test_content_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append("sync folder" if folder else "sync")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", sync)
    monkeypatch.setattr(
        checkpoints.os, "replace", lambda a, b: (events.append("name"), replace(a, b))[1]
    )
    save_checkpoint(content(1), tmp_path / "best.pt")
    assert events[:6] == ["sync", "name", "sync folder"] * 2  # the file, then its digest
    assert events[6:] == ["name", "name", "sync folder"]


# --- files from elsewhere ----------------------------------------------------------------------


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("write", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
@pytest.mark.filterwarnings("ignore:.*pickle protocol:UserWarning")
def test_a_malicious_file_runs_nothing(tmp_path: Path, write: Callable[..., Any]) -> None:
    marker, path = tmp_path / "ran", tmp_path / "best.pt"
    write(content(1) | {"optimizer": Malicious(marker)}, path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert not marker.exists()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)  # torch's own advice runs over several lines
    with suppress(RuntimeError):
        torch.load(path, weights_only=False)  # the file is what this test takes it for
    assert marker.exists()


@pytest.mark.parametrize(
    "foreign", [torch.ones(3), [1, 2], {"state_dict": {}}, {"manifest": "{}"}, {"model": {}}]
)
def test_a_foreign_torch_file_is_refused(tmp_path: Path, foreign: object) -> None:
    path = tmp_path / "best.pt"
    torch.save(foreign, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of maskcls"):
        read_checkpoint(path)
    assert type(load_plain(path)) is type(foreign)  # it is a torch file


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"hello", b"\x80\x02}q\x00."])
def test_no_torch_file_at_all_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path)


# --- files of older versions ----------------------------------------------------------------------


def test_a_file_of_format_1_is_read_for_ever(tmp_path: Path) -> None:
    """Written by version 0.1.0 (age in steps, other attributes beside it) and never renewed: a
    version that cannot read it breaks what people have trained."""
    file = tmp_path / "best.pt"
    file.write_bytes(gzip.decompress((Path(__file__).parent / "files/format1.pt.gz").read_bytes()))
    model, manifest = load_model(file)
    assert (manifest.format, manifest.task, manifest.model, manifest.tta) == (
        1,
        "age",
        "base",
        "flip",
    )
    assert manifest.preprocess == PreprocessSpec(40, 32, (0.8, 1.0))
    assert manifest.fixes[0]["why"] == "마스크"
    assert manifest.config["auxiliary"] == 0.5
    TrainConfig.from_dict(manifest.config)
    pixels = torch.linspace(-2, 2, 3 * 40 * 32).reshape(1, 3, 40, 32)
    with torch.inference_mode():
        answers = model(torch.cat([pixels, pixels.flip(2), pixels.flip(3) * 0.5]))
    expected = [[10.2779, 5.1265, 10.6299], [10.4202, 5.3385, 10.7865], [7.6491, 3.5206, 7.7276]]
    torch.testing.assert_close(answers, torch.tensor(expected), atol=0.01, rtol=0)
    assert read_checkpoint(file)["seen"].tolist() == [-5, 7, 9]
    assert read_manifest(file) == manifest
