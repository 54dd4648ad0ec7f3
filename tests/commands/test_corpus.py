"""Pictures of every kind, whole and broken, through `data check`, `train` and `infer`: the right
pixels, or a reason that names the file."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import sys
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from maskcls.checkpoints import save_checkpoint
from maskcls.commands import data as data_command
from maskcls.commands import infer as infer_command
from maskcls.commands import train as train_command
from maskcls.data.splits import people_of, read_split
from maskcls.labels import ATTRIBUTES, MASK_OF_STEM, MULTI
from maskcls.manifest import Manifest
from maskcls.models import create_model
from maskcls.preprocessing import PreprocessSpec
from maskcls.training import handlers

SPEC = PreprocessSpec(32, 32)
# Large areas of one colour: what JPEG does to them is far below what a wrong turn would do.
PIXELS = np.kron(
    np.array(
        [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]], [[0, 0, 0], [99, 9, 200]]]
    ),
    np.ones((24, 20, 1)),
).astype(np.uint8)  # (72, 40, 3)
EXIF_ORIENTATION = 274
Good = dict[str, tuple[bytes, np.ndarray]]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def grey_of(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))


def good_pictures() -> Good:
    """Name → file content, and the upright pixels it stands for."""
    picture = Image.fromarray(PIXELS)
    jpeg = {"quality": 95, "subsampling": 0}
    found: Good = {
        "plain.jpg": (encoded(picture, "JPEG", **jpeg), PIXELS),
        "progressive.jpg": (encoded(picture, "JPEG", progressive=True, **jpeg), PIXELS),
        "cmyk.jpg": (encoded(picture.convert("CMYK"), "JPEG", **jpeg), PIXELS),
        "grey.jpg": (encoded(picture.convert("L"), "JPEG", **jpeg), grey_of(PIXELS)),
        "really-png.jpg": (encoded(picture, "PNG"), PIXELS),
        "really-jpeg.png": (encoded(picture, "JPEG", **jpeg), PIXELS),
        "palette.png": (encoded(picture.quantize(8, dither=Image.Dither.NONE), "PNG"), PIXELS),
        "lossless.webp": (encoded(picture, "WEBP", lossless=True), PIXELS),
        "plain.bmp": (encoded(picture, "BMP"), PIXELS),
        "plain.ppm": (encoded(picture, "PPM"), PIXELS),
        "tiny.png": (encoded(picture.crop((0, 0, 1, 1)), "PNG"), PIXELS[:1, :1]),
        "long.png": (encoded(picture.resize((3000, 2), 0), "PNG"), None),
        "UPPER.JPG": (encoded(picture, "JPEG", **jpeg), PIXELS),
    }
    found["long.png"] = found["long.png"][0], np.asarray(picture.resize((3000, 2), 0))
    levels = np.arange(72 * 40, dtype=np.uint16).reshape(72, 40) * 22
    expected = np.repeat((levels // 257).astype(np.uint8)[..., None], 3, axis=2)
    found["16-bit.png"] = encoded(Image.fromarray(levels), "PNG"), expected
    alpha = np.full((72, 40, 1), 255, dtype=np.uint8)
    alpha[:24] = 0
    on_white = PIXELS.copy()
    on_white[:24] = 255
    layered = Image.fromarray(np.concatenate([PIXELS, alpha], axis=2))
    found["alpha.png"] = encoded(layered, "PNG"), on_white
    frames = [picture, Image.fromarray(255 - PIXELS)]
    for kind in ("PNG", "WEBP"):
        options = {"save_all": True, "append_images": frames[1:]}
        options |= {"lossless": True} if kind == "WEBP" else {}
        found[f"animated.{kind.lower()}"] = encoded(frames[0], kind, **options), PIXELS
    turns = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x),
    }
    for orientation, turn in turns.items():
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        found[f"turned-{orientation}.jpg"] = (
            encoded(picture, "JPEG", exif=exif, **jpeg),
            np.ascontiguousarray(turn(PIXELS)),
        )
    return found


def bad_pictures() -> dict[str, bytes]:
    """Name → content that is no whole picture."""
    picture = Image.fromarray(PIXELS)
    found = {
        "empty.jpg": b"",
        "zeros.jpg": bytes(1000),
        "text.png": b"not a picture\n" * 10,
        "page.jpg": b"<!doctype html><title>404</title>",
        "gif.png": encoded(picture, "GIF"),
        "tiff.jpg": encoded(picture, "TIFF"),
        "claims-144-MP.png": bomb_png(12_000),
        "claims-4-TP.png": bomb_png(2_000_000),
        "claims-1-GP.bmp": bomb_bmp(32_000),
        "claims-100-GP.ppm": b"P6\n300000 300000\n255\n" + bytes(100),
    }
    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        content = encoded(picture, kind)
        for percent in (1, 10, 50, 75):  # what the very end lacks may be no pixel
            cut = max(1, len(content) * percent // 100)
            found[f"cut-{percent}.{kind.lower()}"] = content[:cut]
    return {name.replace(".jpeg", "-jpeg.jpg"): content for name, content in found.items()}


def bomb_png(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def bomb_bmp(side: int) -> bytes:
    content = bytearray(encoded(Image.fromarray(PIXELS), "BMP"))
    content[18:26] = struct.pack("<ii", side, side)
    return bytes(content)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that answers all attributes and tells colours apart; nobody trained it."""
    torch.manual_seed(0)
    network = create_model("base", MULTI.num_classes, SPEC.size)
    with torch.no_grad():
        network.fc.weight *= 100
    file = tmp_path_factory.mktemp("model") / "best.pt"
    manifest = Manifest("multi", MULTI.class_names, SPEC, "base", {})
    save_checkpoint(
        {"manifest": manifest.to_json(), "model": network.state_dict(), "seen": torch.tensor([1])},
        file,
    )
    return file


def infer(model: Path, folder: Path, *options: str) -> list[dict[str, str]]:
    out = folder.parent / "output.csv"
    argv = ["--model", str(model), "--images", str(folder), "--out", str(out), "--probabilities"]
    assert infer_command.main([*argv, *options]) == 0
    with out.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def shares(row: dict[str, str]) -> np.ndarray:
    """The probabilities of a row, all attributes side by side."""
    names = [name for name in row if name.split(":")[0] in ATTRIBUTES]
    assert len(names) == sum(map(len, ATTRIBUTES.values()))
    return np.array([float(row[name]) for name in names])


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what it meets on the way
def test_labelling(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, upright = tmp_path / "all", tmp_path / "upright"
    folder.mkdir()
    upright.mkdir()
    good, bad = good_pictures(), bad_pictures()
    for name, (content, pixels) in good.items():
        (folder / name).write_bytes(content)
        Image.fromarray(pixels).save(upright / f"{name}.png")
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    rows = {row["ImageID"]: row for row in infer(model, folder, "--batch-size", "7")}
    assert rows.keys() == good.keys() | bad.keys()
    assert f"{len(bad)} pictures could not be read" in capfd.readouterr().err
    for name in bad:
        assert name in rows[name]["error"]
        assert rows[name]["ans"] == ""
    expected = {row["ImageID"]: row for row in infer(model, upright)}
    others = np.array([shares(row) for row in expected.values()])
    assert np.ptp(others, axis=0).max() > 0.3  # the network sees differences
    for name in good:
        assert not rows[name]["error"], name
        # Rounding of JPEG aside, the answer is that of the upright pixels.
        np.testing.assert_allclose(
            shares(rows[name]), shares(expected[f"{name}.png"]), atol=0.02, err_msg=name
        )


def test_odd_names_and_odd_files(model: Path, tmp_path: Path) -> None:
    folder, outside = tmp_path / "names", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    content = encoded(Image.fromarray(PIXELS), "PNG")
    (outside / "far.png").write_bytes(content)
    names = [
        unicodedata.normalize("NFC", "마스크.png"),
        unicodedata.normalize("NFD", "얼굴.png"),
        'a,b "c".png',
        "=1+1.png",
        "two\nlines.png",
        "deep/er/x.png",
    ]
    if sys.platform == "linux":
        names.append(os.fsdecode(b"latin-\xe9.png"))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "link.png").symlink_to(outside / "far.png")
    (folder / "gone.png").symlink_to(outside / "nowhere.png")
    (folder / "self.png").symlink_to("self.png")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "device.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    rows = {row["ImageID"]: row for row in infer(model, folder)}
    broken = {"gone.png", "self.png", "device.png", "pipe.png"}
    assert rows.keys() == {*names, "link.png"} | broken
    assert {name for name, row in rows.items() if row["error"]} == broken
    assert len({row["ans"] for name, row in rows.items() if name not in broken}) == 1


@pytest.fixture
def people(tmp_path: Path) -> tuple[Path, set[str]]:
    """A data folder whose pictures are the corpus, seven to a person; and which of them are bad."""
    contents = [(name, content, False) for name, (content, _) in good_pictures().items()]
    contents += [(name, content, True) for name, content in bad_pictures().items()]
    order = np.random.default_rng(1).permutation(len(contents))
    bad = set()
    for number, index in enumerate(order):
        person, place = divmod(number, len(MASK_OF_STEM))
        gender, age = ("male", "female")[person % 2], (22, 45, 63)[person % 3]
        folder = tmp_path / "data" / "images" / f"{person:06d}_{gender}_Asian_{age}"
        folder.mkdir(parents=True, exist_ok=True)
        name, content, is_bad = contents[index]
        file = folder / f"{list(MASK_OF_STEM)[place]}{Path(name).suffix}"
        file.write_bytes(content)
        if is_bad:
            bad.add(f"images/{folder.name}/{file.name}")
    return tmp_path / "data", bad


@pytest.mark.filterwarnings("ignore")
def test_check_names_the_bad_ones(people: tuple[Path, set[str]], tmp_path: Path) -> None:
    root, bad = people
    file = tmp_path / "check.json"
    assert data_command.main(["check", str(root), "--json", str(file)]) == 1
    problems = json.loads(file.read_text("utf-8"))["problems"]
    unreadable = [problem for problem in problems if problem["kind"] == "unreadable picture"]
    assert {name for name in bad for problem in unreadable if name in str(problem)} == bad
    assert len(unreadable) == len(bad)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_training_takes_the_others(
    people: tuple[Path, set[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: str,
) -> None:
    monkeypatch.setattr(handlers, "confusion_figure", lambda *a: Figure((1, 1), dpi=8))
    monkeypatch.setattr(handlers, "grid_image", lambda *a: Figure((1, 1), dpi=8))
    root, bad = people
    argv = ["--data-dir", str(root), "--model-dir", str(tmp_path / "runs"), "--weights", "none"]
    argv += ["--model", "base", "--height", "32", "--width", "32", "--epochs", "1"]
    argv += ["--cache", str(tmp_path / "cache"), "--device", "cpu", "--workers", workers]
    assert train_command.main(argv) == 0
    out = capsys.readouterr().out
    assert f"warning: {len(bad)} unreadable pictures are skipped" in out
    assert train_command.main([*argv, "--strict"]) == 1
    assert f"error: {len(bad)} unreadable" in capsys.readouterr().err


@pytest.fixture
def odd_people(tmp_path: Path) -> Path:
    """A data folder with names that are hard to write down, links and things that are no files."""
    content = encoded(Image.fromarray(PIXELS), "PNG")
    names = [
        unicodedata.normalize("NFC", "000001_male_아시아_25"),
        unicodedata.normalize("NFD", "000002_female_한국_45"),
        '000003_male_a,"b"_61',
        "=1+1_female_x_33",
        "000005_male_two\nlines_29",
        "000006_male_line\rfeed_62",
        "000007_male_Asian_22",
        "000008_female_Asian_64",
    ]
    if sys.platform == "linux":
        names.append(os.fsdecode(b"000009_female_\xe9_60"))
    images = tmp_path / "data" / "images"
    for number, name in enumerate(names):
        (images / name).mkdir(parents=True)
        for stem in MASK_OF_STEM:
            picture = Image.fromarray(np.roll(PIXELS, number * 7 + len(stem), axis=0))
            picture.save(images / name / f"{stem}.png")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "far.png").write_bytes(content)
    linked = images / "000007_male_Asian_22"
    for number in (1, 2, 3, 4):
        (linked / f"mask{number}.png").unlink()
    (linked / "mask1.png").symlink_to(outside / "far.png")
    (linked / "mask2.png").symlink_to("mask2.png")
    (linked / "mask3.png").symlink_to("/dev/zero")
    os.mkfifo(linked / "mask4.png")
    (linked / "loop").symlink_to(images, target_is_directory=True)
    return tmp_path / "data"


def test_training_on_odd_names_and_odd_files(
    odd_people: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(handlers, "confusion_figure", lambda *a: Figure((1, 1), dpi=8))
    monkeypatch.setattr(handlers, "grid_image", lambda *a: Figure((1, 1), dpi=8))
    report = tmp_path / "check.json"
    assert data_command.main(["check", str(odd_people), "--json", str(report)]) == 1
    problems = json.loads(report.read_text("utf-8"))["problems"]
    unreadable = [problem for problem in problems if problem["kind"] == "unreadable picture"]
    assert len(unreadable) == 3
    argv = ["--data-dir", str(odd_people), "--model-dir", str(tmp_path / "runs"), "--device", "cpu"]
    argv += ["--weights", "none", "--model", "base", "--height", "32", "--width", "32"]
    argv += ["--epochs", "1", "--cache", str(tmp_path / "cache"), "--val-ratio", "0.3"]
    assert train_command.main(argv) == 0
    assert "warning: 3 unreadable pictures are skipped" in capsys.readouterr().out
    run = tmp_path / "runs/mask_gender/exp"
    table = read_split(run / "split.csv")
    folders = {unicodedata.normalize("NFC", path.name) for path in odd_people.glob("images/*")}
    assert people_of(table, "train") | people_of(table, "val") == folders
    # The same people again: the hash in the checkpoint is that of these names.
    assert train_command.main(["--resume", str(run)]) == 0
    assert "is finished" in capsys.readouterr().out
