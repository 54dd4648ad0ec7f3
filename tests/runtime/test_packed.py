"""Pictures in tar files and Parquet tables get the labels that they get as files."""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from maskcls import images
from maskcls.commands.infer import main
from maskcls.errors import DataError, MissingExtraError
from maskcls.runtime import Pictures, labelling, open_pictures
from maskcls.runtime.packed import CUT, DAMAGED, NO_END, PackedPictures

Rows = list[tuple[str, str, bool]]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(labelling, "PART", 4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def argv(networks: list[str]) -> list[str]:
    return ["--model", *networks, "--provider", "cpu", "--batch-size", "2"]


def rows_of(path: str | Path) -> Rows:
    """Name, label and whether there is an error."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [(row["ImageID"], row["ans"], bool(row.get("error"))) for row in rows]


def labels(argv: list[str], images: str | Path) -> Rows:
    assert main([*argv, "--images", str(images), "--out", "labels.csv"]) == 0
    return rows_of("labels.csv")


def fails(argv: list[str], images: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main([*argv, "--images", images, "--out", "none.csv"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def write_tar(path: str, photos: Path, names: list[str], **options: Any) -> None:
    with tarfile.open(path, "w", **options) as archive:
        for name in names:
            archive.add(photos / name, name)


def write_parquet(path: str, columns: dict[str, list[Any]], **options: Any) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table(columns), path, **options)


def contents(pictures: Pictures) -> list[tuple[str, bytes | None, bool]]:
    return [(source.image_id, source.content, bool(source.error)) for source in pictures]


# --- tar ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tar_files_of_a_folder(argv: list[str], photos: Path, place: Path, format: int) -> None:
    """As WebDataset has them: other files beside each picture, which are passed over."""
    truth = labels(argv, photos)
    names = [name for name, _, _ in truth]
    (place / "shards").mkdir()
    (photos / "00.json").write_text("{}")
    (photos / ".hidden.png").write_bytes(b"x")
    (photos / ("long" * 50 + ".cls")).write_text("3")
    for number in range(3):
        own = [*names[number * 7 : number * 7 + 7], "00.json", ".hidden.png", "long" * 50 + ".cls"]
        write_tar(f"shards/{number}.tar", photos, own, format=format)
    (place / "shards" / "notes.txt").write_text("not read")
    expected = [(f"{at // 7}.tar/{row[0]}", *row[1:]) for at, row in enumerate(truth)]
    assert labels(argv, "shards") == expected
    assert labels(argv, "shards/1.tar") == expected[7:14]


def test_a_picture_by_itself_goes_before_packed_ones(photos: Path) -> None:
    write_tar(str(photos / "a.tar"), photos, ["01.png"])
    assert not isinstance(open_pictures(photos), PackedPictures)
    assert isinstance(open_pictures(photos / "a.tar"), PackedPictures)


def test_tar_files_beside_pictures_are_told(
    argv: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(str(photos / "a.tar"), photos, ["01.png"])
    labels(argv, photos)
    assert f"note: a.tar in {photos} not read" in capsys.readouterr().err
    labels(argv, photos / "a.tar")
    assert "not read" not in capsys.readouterr().err
    Path("list.csv").write_text("path\n01.png\n")
    labels([*argv, "--info", "list.csv"], photos)  # what is to be read stands there
    assert "not read" not in capsys.readouterr().err
    Path("tars").mkdir()
    write_tar("tars/a-captions.tar", photos, [])
    write_tar("tars/b.tar", photos, ["01.png"])
    labels(argv, "tars")
    assert "not read" not in capsys.readouterr().err


def test_a_film_in_a_tar_file_is_not_read(
    argv: list[str], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", (photos / "01.png").stat().st_size - 1)
    (photos / "02.png").write_bytes(b"small")
    write_tar("a.tar", photos, ["01.png", "02.png"])
    assert [source.error.partition(": ")[2] for source in open_pictures(Path("a.tar"))] == [
        "0 MB are more than the 0 that a picture can have",
        "",
    ]


def test_a_tar_file_that_is_cut_off(argv: list[str], photos: Path) -> None:
    names = ["01.png", "02.png", "04.png"]
    write_tar("a.tar", photos, names)
    whole = labels(argv, "a.tar")
    with tarfile.open("a.tar") as archive:
        last = archive.getmembers()[-1]
    os.truncate("a.tar", last.offset_data + 20)
    assert labels(argv, "a.tar") == [*whole[:2], ("a.tar/04.png", "", True)]
    with open("labels.csv", encoding="utf-8") as file:
        assert f"a.tar/04.png: {CUT}" in file.read()
    os.truncate("a.tar", last.offset_data - 100)  # in its header
    assert labels(argv, "a.tar") == [*whole[:2], (f"a.tar/@{last.offset}", "", True)]
    with open("labels.csv", encoding="utf-8") as file:
        assert DAMAGED in file.read()


def test_a_tar_file_that_is_cut_off_in_something_else(argv: list[str], photos: Path) -> None:
    """What may have followed is missing, which is told."""
    (photos / "big.json").write_bytes(b"x" * 2000)
    write_tar("a.tar", photos, ["01.png", "big.json", "02.png"])
    with tarfile.open("a.tar") as archive:
        os.truncate("a.tar", archive.getmember("big.json").offset_data + 20)
    first, second = labels(argv, "a.tar")
    assert first[0] == "a.tar/01.png" and not first[2]
    assert re.fullmatch(r"a\.tar/@\d+", second[0]) and second[2]


@pytest.mark.parametrize("kept", [-1, 0, 1, 511, 512])
def test_a_tar_file_that_is_cut_off_between_entries(
    argv: list[str], photos: Path, kept: int
) -> None:
    """As a copy that was interrupted leaves it: only the zeros at the end say that it is whole."""
    write_tar("a.tar", photos, ["01.png", "02.png", "04.png"])
    whole = labels(argv, "a.tar")
    with tarfile.open("a.tar") as archive:
        third = archive.getmembers()[2].offset
    content = Path("a.tar").read_bytes()[:third]
    Path("a.tar").write_bytes((content + bytes(512))[: third + kept])
    missing = [] if kept == 512 else [(f"a.tar/@{third}", "", True)]
    assert labels(argv, "a.tar") == whole[:2] + missing
    if missing:
        assert NO_END in Path("labels.csv").read_text()


@pytest.mark.parametrize("long", [False, True])
def test_a_damaged_entry_in_the_middle(argv: list[str], photos: Path, long: bool) -> None:
    name = "n" * 120 + ".png" if long else "n.png"
    (photos / "02.png").rename(photos / name)
    write_tar("a.tar", photos, ["01.png", name, "04.png"], format=tarfile.GNU_FORMAT)
    [first, *_] = labels(argv, "a.tar")
    with tarfile.open("a.tar") as archive:
        second = archive.getmembers()[1]
    with open("a.tar", "rb+") as file:
        file.seek(second.offset_data - 512 + 150)  # in the header's sum
        file.write(b"\xff\xff")
    # A long name is an entry of its own before it; from there on the file is damaged.
    assert labels(argv, "a.tar") == [first, (f"a.tar/@{second.offset}", "", True)]


def test_links_and_folders_in_a_tar_file(argv: list[str], photos: Path) -> None:
    with tarfile.open("a.tar", "w") as archive:
        archive.add(photos / "01.png", "a/01.png")
        for name, kind in (("b.png", tarfile.DIRTYPE), ("c.png", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    first, link = labels(argv, "a.tar")
    assert first[0] == "a.tar/a/01.png" and not first[2]
    assert link == ("a.tar/c.png", "", True)


def test_tar_files_that_cannot_be_opened(
    argv: list[str], photos: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar("twice.tar", photos, ["01.png", "02.png", "01.png"])
    assert "twice.tar: '01.png' stands twice" in fails(argv, "twice.tar", capsys)
    with tarfile.open("packed.tar", "w:gz") as archive:
        archive.add(photos / "01.png", "01.png")
    assert "no tar file, or a compressed one" in fails(argv, "packed.tar", capsys)
    (place / "empty.tar").write_bytes(b"")
    assert "no tar file" in fails(argv, "empty.tar", capsys)
    write_tar("nothing.tar", photos, [])
    assert "nothing.tar: no pictures in it" in fails(argv, "nothing.tar", capsys)
    write_tar("good.tar", photos, ["01.png"])
    line = fails([*argv, "--info", "x.csv"], "good.tar", capsys)
    assert "--info goes with a folder" in line
    assert not (place / "none.csv").exists()


def test_a_tar_file_that_becomes_shorter_on_the_way(photos: Path) -> None:
    write_tar("a.tar", photos, ["01.png", "02.png", "04.png"])
    pictures = open_pictures(Path("a.tar"))
    write_tar("a.tar", photos, ["01.png"])
    with pytest.raises(DataError, match=r"a\.tar: has become shorter"):
        list(pictures)


# --- Parquet -----------------------------------------------------------------------------------


def test_parquet_of_paths(argv: list[str], photos: Path) -> None:
    truth = labels(argv, photos)
    for column in ("ImageID", "path"):
        write_parquet("list.parquet", {column: [f"photos/{name}" for name, _, _ in truth]})
        assert labels(argv, "list.parquet") == [(f"photos/{row[0]}", *row[1:]) for row in truth]


@pytest.mark.parametrize("group", [1, 5, 1000])
def test_parquet_of_bytes(argv: list[str], photos: Path, group: int) -> None:
    truth = labels(argv, photos)
    names = [name for name, _, _ in truth]
    content = [(photos / name).read_bytes() for name in names]
    unnamed = [(f"a.parquet/{number}", *row[1:]) for number, row in enumerate(truth)]
    write_parquet("a.parquet", {"n": names, "image": content}, row_group_size=group)
    assert labels(argv, "a.parquet") == unnamed
    write_parquet("a.parquet", {"jpg": content, "ImageID": names}, row_group_size=group)
    assert labels(argv, "a.parquet") == truth
    structs = [{"bytes": b, "path": name} for b, name in zip(content, names, strict=True)]
    structs[3]["path"], structs[7]["path"] = None, ""
    write_parquet("a.parquet", {"image": structs}, row_group_size=group)
    mixed = [unnamed[at] if at in (3, 7) else row for at, row in enumerate(truth)]
    assert labels(argv, "a.parquet") == mixed
    write_parquet("a.parquet", {"ImageID": range(21), "image": structs}, row_group_size=group)
    assert labels(argv, "a.parquet") == [(str(n), *row[1:]) for n, row in enumerate(truth)]


def test_parquet_without_a_picture(argv: list[str], photos: Path) -> None:
    good = (photos / "01.png").read_bytes()
    write_parquet("a.parquet", {"ImageID": ["a", "b"], "image": [good, None]})
    assert [row[2] for row in labels(argv, "a.parquet")] == [False, True]
    write_parquet("a.parquet", {"path": ["photos/01.png", None]})
    first, second = labels(argv, "a.parquet")
    assert (first[2], second) == (False, ("a.parquet/1", "", True))


def test_a_damaged_row_group(argv: list[str], photos: Path) -> None:
    names = sorted(path.name for path in photos.iterdir())[6:12]
    content = [(photos / name).read_bytes() for name in names]
    columns = {"ImageID": names, "image": content}
    options = {"row_group_size": 2, "compression": "none", "use_dictionary": ["ImageID"]}
    write_parquet("a.parquet", columns, write_page_checksum=True, **options)
    truth = labels(argv, "a.parquet")
    from pyarrow.parquet import ParquetFile

    with ParquetFile("a.parquet") as file:
        start = file.metadata.row_group(1).column(1).data_page_offset
    with open("a.parquet", "rb+") as file:
        file.seek(start)
        file.write(b"\xff" * 16)  # the page's header
    damaged = [(f"a.parquet/{row}", "", True) for row in (2, 3)]
    assert labels(argv, "a.parquet") == [*truth[:2], *damaged, *truth[4:]]


def test_parquet_that_cannot_be_opened(
    argv: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet("other.parquet", {"n": [1]})
    line = fails(argv, "other.parquet", capsys)
    assert "other.parquet: no column of bytes, and none named ImageID or path" in line
    write_parquet("twice.parquet", {"path": ["a.png", "b.png", "a.png"]})
    assert "twice.parquet: 'a.png' stands twice" in fails(argv, "twice.parquet", capsys)
    (place / "twice").mkdir()
    for name, column in (("a", ["1", "2"]), ("b", [3, 2])):
        write_parquet(f"twice/{name}.parquet", {"ImageID": column, "image": [b"x", b"x"]})
    line = fails(argv, "twice", capsys)
    assert f"{Path('twice/b.parquet')}: '2' stands in a.parquet, too" in line
    import pyarrow

    odd = pyarrow.array([b"a.png", b"\xe9.png"]).view(pyarrow.string())
    write_parquet("odd.parquet", {"path": odd})
    assert "odd.parquet: path is not UTF-8 text" in fails(argv, "odd.parquet", capsys)
    write_parquet("none.parquet", {"path": []})
    assert "none.parquet: no pictures in it" in fails(argv, "none.parquet", capsys)
    (place / "bad.parquet").write_bytes(b"PAR1 and no more")
    assert "bad.parquet: cannot be read as Parquet" in fails(argv, "bad.parquet", capsys)


def test_parquet_needs_pyarrow(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    write_parquet("a.parquet", {"path": ["a.png"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'maskcls\[parquet\]'"):
        open_pictures(Path("a.parquet"))


# --- both --------------------------------------------------------------------------------------


@pytest.fixture
def packed(photos: Path, place: Path) -> Path:
    """A folder of two tar files and a Parquet table."""
    names = sorted(path.name for path in photos.iterdir())
    (place / "packed").mkdir()
    write_tar("packed/a.tar", photos, names[:8])
    content = [(photos / name).read_bytes() for name in names[8:13]]
    write_parquet("packed/b.parquet", {"image": content}, row_group_size=2)
    write_tar("packed/c.tar", photos, names[13:])
    return place / "packed"


def test_parts_of_packed_pictures(packed: Path) -> None:
    """A slice, and a slice of a slice, are what they would be of a list."""
    pictures = open_pictures(packed)
    whole = contents(pictures)
    assert len(pictures) == len(whole) == 21
    for start, stop in itertools.product((0, 3, 8, 13, 20, 21), (0, 4, 8, 9, 13, 21, 30)):
        part = pictures[start:stop]
        assert contents(part) == whole[start:stop]
        assert len(part) == len(whole[start:stop])
        assert contents(part[2:4]) == whole[start:stop][2:4]
    with pytest.raises(ValueError, match="in order"):
        pictures[::2]


def test_shards_of_packed_pictures(argv: list[str], packed: Path) -> None:
    argv += ["--images", str(packed), "--probabilities"]
    assert main([*argv, "--out", "whole.csv"]) == 0
    outs = [f"{number}.csv" for number in range(1, 5)]
    for number, out in enumerate(outs, 1):
        assert main([*argv, "--shard", f"{number}/4", "--out", out]) == 0
    assert main(["--merge", *outs, "--out", "joined.csv"]) == 0
    assert Path("joined.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_packed_pictures_that_are_others_do_not_go_on(
    argv: list[str], packed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    argv += ["--images", str(packed), "--out", "labels.csv"]
    real = labelling.predict
    count = itertools.count()

    def interrupted(*args: Any) -> Any:
        if next(count) == 5:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(labelling, "predict", interrupted)
    assert main(argv) == 130
    monkeypatch.setattr(labelling, "predict", real)
    (packed / "c.tar").rename(packed / "d.tar")
    assert main([*argv, "--resume"]) == 1
    assert "of another job" in capsys.readouterr().err
    (packed / "d.tar").rename(packed / "c.tar")
    assert main([*argv, "--resume"]) == 0
    resumed = Path("labels.csv").read_bytes()
    assert main(argv) == 0
    assert Path("labels.csv").read_bytes() == resumed


@pytest.mark.parametrize("name", ["list.csv", "faces.parquet"])
def test_labels_do_not_take_the_place_of_what_is_labelled(
    argv: list[str], photos: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    if name == "list.csv":
        Path(name).write_text(f"path,consent\n{photos}/01.png,yes\n")
    else:
        content = [(photos / "01.png").read_bytes()]
        write_parquet(name, {"ImageID": ["one"], "image": content})
    before = Path(name).read_bytes()
    link = Path(f"link{Path(name).suffix}")
    link.symlink_to(name)
    for out in (name, str(link)):
        capsys.readouterr()
        assert main([*argv, "--images", name, "--out", out]) == 1
        assert "the pictures come from it" in capsys.readouterr().err
    assert Path(name).read_bytes() == before
    assert main([*argv, "--images", str(photos), "--info", "list.csv", "--out", "list.csv"]) == 1


def test_labels_in_a_folder_of_packed_files_are_no_pictures(argv: list[str], packed: Path) -> None:
    out = packed / "labels.parquet"
    for _ in range(2):
        assert main([*argv, "--images", str(packed), "--out", str(out)]) == 0
        assert main([*argv, "--images", str(packed), "--out", "labels.csv"]) == 0
        names = [name for name, _, _ in rows_of("labels.csv")]
        assert len(names) == len(set(names)) == len(open_pictures(packed))


def test_what_else_lies_beside_packed_files_hides_none(packed: Path) -> None:
    before = [source.image_id for source in open_pictures(packed)]
    for name in ("a.tar", "b.parquet"):
        (packed / f"{name}.json").write_text('{"shards": 3}')
    assert [source.image_id for source in open_pictures(packed)] == before


def test_a_folder_is_no_file_of_labels(
    argv: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("old.csv").mkdir()
    assert main([*argv, "--images", str(photos), "--out", "old.csv"]) == 1
    assert "old.csv: is a folder" in capsys.readouterr().err
    assert list(Path("old.csv").iterdir()) == [] and not Path("old.csv.parts").exists()


def test_people_in_packed_folders_are_known(photos: Path) -> None:
    """The member's folder is the person, as on a disk."""
    with tarfile.open("a.tar", "w") as archive:
        member = tarfile.TarInfo("000001_male_한국_20/normal.png")
        content = (photos / "01.png").read_bytes()
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    [source] = open_pictures(Path("a.tar"))
    assert source.path.parent.name == "000001_male_한국_20"
