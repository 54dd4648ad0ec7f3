"""Which pictures are labelled, in which order, under which names."""

from __future__ import annotations

import errno
import os
import pickle
import re
import tracemalloc
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest

from maskcls.errors import DataError
from maskcls.runtime.sources import Source, list_pictures

NFC = unicodedata.normalize("NFC", "가나다.jpg")
NFD = unicodedata.normalize("NFD", NFC)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def ids(sources: Sequence[Source]) -> list[str]:
    return [source.image_id for source in sources]


# --- a folder ----------------------------------------------------------------------------------


def test_a_folder_gives_all_pictures_below_it(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a/2.png", "a/10.jpeg", "a/deep/x.webp", "notes.txt", "c.jpg.json")
    touch(tmp_path, ".hidden.jpg", "._a.jpg", ".cache/d.jpg")
    sources = list_pictures(tmp_path)
    assert ids(sources) == ["a/10.jpeg", "a/2.png", "a/deep/x.webp", "b.JPG"]
    assert all(source.path == tmp_path / source.image_id for source in sources)


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path / "real", "a.jpg")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "b.jpg").symlink_to(tmp_path / "real" / "a.jpg")
    assert ids(list_pictures(tmp_path / "real")) == ["a.jpg", "b.jpg"]


def test_a_folder_keeps_names_as_they_are_on_the_disk(tmp_path: Path) -> None:
    touch(tmp_path, NFC, NFD, "=1+1.jpg", "a b,c.jpg")
    assert set(ids(list_pictures(tmp_path))) == {*os.listdir(tmp_path)}


def test_info_csv_gives_names_and_order(tmp_path: Path) -> None:
    touch(tmp_path / "images", "a.jpg", "b.jpg", "unlisted.jpg")
    (tmp_path / "info.csv").write_text("ImageID,ans\nb.jpg,0\na.jpg,0\n")
    sources = list_pictures(tmp_path)
    assert ids(sources) == ["b.jpg", "a.jpg"]
    assert sources[0].path == tmp_path / "images" / "b.jpg"


def test_info_by_itself_names_pictures_of_the_folder(tmp_path: Path) -> None:
    touch(tmp_path / "pictures", "a.jpg", "b.jpg")
    (tmp_path / "order.csv").write_text("ImageID,ans\nb.jpg,0\na.jpg,0\n")
    sources = list_pictures(tmp_path / "pictures", tmp_path / "order.csv")
    assert [source.path for source in sources] == [
        tmp_path / "pictures" / name for name in ("b.jpg", "a.jpg")
    ]


def test_a_missing_file_is_listed_all_the_same(tmp_path: Path) -> None:
    touch(tmp_path / "images", "a.jpg")
    (tmp_path / "info.csv").write_text("ImageID,ans\nb.jpg,0\na.jpg,0\n")
    assert ids(list_pictures(tmp_path)) == ["b.jpg", "a.jpg"]


def test_a_name_of_a_folder_is_no_other_file(tmp_path: Path) -> None:
    """A file that is gone is an error, though another has its name in the other form."""
    touch(tmp_path, NFC)
    if (tmp_path / NFD).exists():
        pytest.skip("this file system takes both forms for one name")
    (tmp_path / NFD).symlink_to(tmp_path / "gone.jpg")
    sources = list_pictures(tmp_path)
    assert [source.path.name for source in sources] == ids(sources)
    assert set(ids(sources)) == {NFC, NFD}


# --- lists -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "ImageID\nb.jpg\nsub/a.jpg\n"),
        ("list.csv", "ans,path\n0,b.jpg\n0,sub/a.jpg\n"),
        ("list.csv", "\ufeffImageID,ans\r\nb.jpg,0\r\nsub/a.jpg,0\r\n"),
        ("list.txt", "b.jpg\n\n  sub/a.jpg  \n"),
        ("LIST.TXT", "b.jpg\r\nsub/a.jpg"),
    ],
)
def test_a_list_names_pictures_relative_to_itself(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    sources = list_pictures(tmp_path / name)
    assert ids(sources) == ["b.jpg", "sub/a.jpg"]
    assert [source.path for source in sources] == [tmp_path / "b.jpg", tmp_path / "sub/a.jpg"]


def test_cells_with_commas_and_quotes(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('ImageID,ans\n"a,b.jpg",0\n"say ""hi"".jpg",0\n')
    assert ids(list_pictures(tmp_path / "list.csv")) == ["a,b.jpg", 'say "hi".jpg']


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_names_with_what_else_python_takes_for_the_end_of_a_line(tmp_path: Path, end: str) -> None:
    names = [f"a{sign}b.jpg" for sign in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"]
    for name in ("list.txt", "list.csv"):
        text = end.join(["path"] * name.endswith("csv") + names)
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        assert ids(list_pictures(tmp_path / name)) == names
    text = end.join(["path", *(f'"a{sign}b.jpg"' for sign in ("\n", "\r\n", "\r"))])
    (tmp_path / "list.csv").write_text(text, encoding="utf-8", newline="")
    assert ids(list_pictures(tmp_path / "list.csv")) == ["a\nb.jpg", "a\r\nb.jpg", "a\rb.jpg"]


def test_imageid_comes_before_path(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,ImageID\nx,a.jpg\n")
    assert ids(list_pictures(tmp_path / "list.csv")) == ["a.jpg"]


def test_absolute_paths_stay_absolute(tmp_path: Path) -> None:
    touch(tmp_path / "far", "a.jpg")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/far/a.jpg\n")
    [source] = list_pictures(tmp_path / "list.txt")
    assert source.path == tmp_path / "far" / "a.jpg"


@pytest.mark.parametrize(("on_disk", "in_list"), [(NFC, NFD), (NFD, NFC)])
def test_korean_names_are_found_in_either_form(tmp_path: Path, on_disk: str, in_list: str) -> None:
    touch(tmp_path / "images", on_disk)
    (tmp_path / "info.csv").write_text(f"ImageID,ans\n{in_list},0\n", encoding="utf-8")
    [source] = list_pictures(tmp_path)
    assert source.image_id == in_list  # what was asked for is what is answered
    assert source.path.read_bytes() == b"x"


@pytest.mark.parametrize("in_list", ["NFC", "NFD"])
@pytest.mark.parametrize("on_disk", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_folder_and_its_file_may_be_of_different_forms(
    tmp_path: Path, on_disk: tuple[str, str], in_list: str
) -> None:
    parts = [unicodedata.normalize(form, "가족") for form in on_disk]
    touch(tmp_path / parts[0], f"{parts[1]}.jpg")
    name = unicodedata.normalize(in_list, "가족/가족.jpg")
    (tmp_path / "list.txt").write_text(f"{name}\n{name}x\n{tmp_path}/{name}\n", encoding="utf-8")
    there, missing, absolute = list_pictures(tmp_path / "list.txt")
    assert there.image_id == name
    assert there.path.read_bytes() == absolute.path.read_bytes() == b"x"
    assert missing.path == tmp_path / f"{name}x"


def test_both_forms_are_two_pictures(tmp_path: Path) -> None:
    touch(tmp_path / "images", NFC, NFD)
    if len(os.listdir(tmp_path / "images")) == 1:
        pytest.skip("this file system takes both forms for one name")
    (tmp_path / "info.csv").write_text(f"ImageID,ans\n{NFD},0\n{NFC},0\n", encoding="utf-8")
    assert [source.path.name for source in list_pictures(tmp_path)] == [NFD, NFC]


def test_a_long_list_holds_little_more_than_its_names(tmp_path: Path) -> None:
    names = 20_000
    (tmp_path / "list.txt").write_text("\n".join(f"{n:06}/picture.jpg" for n in range(names)))
    list_pictures(tmp_path / "list.txt")  # what is imported and made once
    tracemalloc.start()
    try:
        sources = list_pictures(tmp_path / "list.txt")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sources[-1].path == tmp_path / f"{names - 1:06}" / "picture.jpg"
    assert held / names < 120  # a str of such a name has 67, its place in a list 8


def test_a_part_of_a_list_has_the_same_files(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n}.jpg" for n in range(7)))
    sources = list_pictures(tmp_path)
    assert list(sources[2:5]) == list(sources)[2:5]
    assert len(sources[2:5]) == 3
    with pytest.raises(IndexError):
        sources[7]


def test_a_part_of_a_list_is_small(tmp_path: Path) -> None:
    """Each task of a cluster is sent one."""
    names = [unicodedata.normalize("NFD", f"사진 {n}.jpg") for n in range(1000)]
    touch(tmp_path, *names)
    listed = "\n".join(unicodedata.normalize("NFC", name) for name in names)
    (tmp_path / "list.txt").write_text(listed, encoding="utf-8")
    part = list_pictures(tmp_path / "list.txt")[10:12]
    assert len(pickle.dumps(part)) < 1000
    assert [source.path.name for source in pickle.loads(pickle.dumps(part))] == names[10:12]


def test_a_folder_is_sorted_by_the_parts_of_its_paths(tmp_path: Path) -> None:
    names = ["a/b.jpg", "a.jpg", "a-b/c.jpg", "a/a/z.jpg", "a b/c.jpg", "a/a.jpg"]
    touch(tmp_path, *names)
    assert ids(list_pictures(tmp_path)) == [
        path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path / name for name in names)
    ]


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ImageID,ans\na.jpg,0\nb.jpg,0\na.jpg,0\n", "'a.jpg' stands twice"),
        (b"ImageID,ans\n,0\n", "an empty name"),
        (b"ans,ImageID\n0\n", "an empty name"),
        (b"id,ans\na.jpg,0\n", "no column ImageID or path"),
        (b"", "no column"),
        (b"ImageID,ans\n", "no pictures in it"),
        (b"ImageID\n\xff\xfe.jpg\n", "not UTF-8"),
        (b"ImageID\n" + b"a" * 200_000 + b"\n", "not a CSV table"),
        (b"a" * 200_000 + b"\n", "not a CSV table"),
        (b'ImageID,ans\na.jpg,"0\nb.jpg,0\n', "not a CSV table"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    table = tmp_path / "list.csv"
    table.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list_pictures(table)
    assert str(table) in str(caught.value)


def test_a_folder_below_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.jpg", "closed/b.jpg", ".closed/c.jpg")
    real = os.scandir

    def scandir(path: str) -> object:  # root is not stopped by a folder's mode
        if os.path.basename(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'closed'}: Permission denied")):
        list_pictures(tmp_path)
    (tmp_path / "closed").rename(tmp_path / ".not closed")
    assert ids(list_pictures(tmp_path)) == ["a.jpg"]


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}: no pictures in it")):
        list_pictures(tmp_path)
    with pytest.raises(DataError, match="no such folder or list of pictures: .*nowhere"):
        list_pictures(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"none\.csv: No such file"):
        list_pictures(tmp_path, tmp_path / "none.csv")
    (tmp_path / "list.txt").write_text("a.jpg\n")
    with pytest.raises(DataError, match="is a list already"):
        list_pictures(tmp_path / "list.txt", tmp_path / "info.csv")
