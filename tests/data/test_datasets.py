"""Data sets: labels are those of the folders, people stay on one side, no picture is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Subset

from maskcls.data.datasets import (
    AgeDataset,
    MaskBaseDataset,
    MaskGenderDataset,
    MaskSplitByProfileDataset,
    TestDataset,
)
from maskcls.data.fixes import Fix
from maskcls.data.loaders import EpochBatches, Share, training_loader, validation_loader
from maskcls.data.sample import make_sample
from maskcls.errors import DataError, PictureError
from maskcls.images import read_image
from maskcls.labels import TASKS
from maskcls.preprocessing import PreprocessSpec

SPEC = PreprocessSpec(32, 32)
PEOPLE = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample of a dozen people, its cache beside it."""
    return make_sample(
        tmp_path_factory.mktemp("datasets") / "sample", PEOPLE, eval_people=6, progress=False
    )


def make(root: Path, cls: type[MaskBaseDataset] = MaskSplitByProfileDataset, **options):
    options.setdefault("cache", str(root.parent / "cache"))
    return cls([root / "train"], SPEC, say=lambda text: None, **options)


@pytest.fixture(scope="module")
def dataset(root: Path) -> MaskSplitByProfileDataset:
    return make(root)


def by_hand(path: Path) -> dict[str, int]:
    """The labels of a picture, read off its path as a person would."""
    _, gender, _, age = path.parent.name.split("_")
    years = int(age)
    return {
        "mask": {"incorrect_mask": 1, "normal": 2}.get(path.stem, 0),
        "gender": ["male", "female"].index(gender),
        "age": 0 if years < 30 else 1 if years < 60 else 2,
    }


def class_by_hand(task: str, path: Path) -> int:
    digits = by_hand(path)
    return {
        "multi": digits["mask"] * 6 + digits["gender"] * 3 + digits["age"],
        "mask_gender": digits["mask"] * 2 + digits["gender"],
        **digits,
    }[task]


# --- labels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_those_of_the_folders(root: Path, task: str) -> None:
    data = make(root, task=TASKS[task])
    assert len(data) == PEOPLE * 7
    assert [int(label) for label in data.labels] == [
        class_by_hand(task, path) for path in data.paths
    ]
    assert data.people == [path.parent.name for path in data.paths]
    for attribute, classes in data.attributes.items():
        assert classes.tolist() == [by_hand(path)[attribute] for path in data.paths]


@pytest.mark.parametrize(
    ("cls", "task"),
    [
        (MaskBaseDataset, "multi"),
        (MaskSplitByProfileDataset, "multi"),
        (MaskGenderDataset, "mask_gender"),
        (AgeDataset, "age"),
    ],
)
def test_every_class_has_its_task(root: Path, cls: type[MaskBaseDataset], task: str) -> None:
    data = make(root, cls)
    assert data.task is TASKS[task]
    assert [int(v) for v in data.labels] == [class_by_hand(task, path) for path in data.paths]


def test_two_data_sets_share_nothing(root: Path) -> None:
    first = make(root)
    first.paths.clear()
    assert len(make(root).paths) == PEOPLE * 7


def test_fixes_change_the_labels(root: Path, dataset: MaskSplitByProfileDataset) -> None:
    person = dataset.people[0]
    old = "male" if by_hand(dataset.paths[0])["gender"] == 0 else "female"
    new = "female" if old == "male" else "male"
    fixed = make(root, fixes=[Fix(person, "gender", old, new, "looked at")], task=TASKS["gender"])
    plain = make(root, task=TASKS["gender"])
    changed = {fixed.people[i] for i in np.flatnonzero(fixed.labels != plain.labels)}
    assert changed == {person}


# --- items -------------------------------------------------------------------------------------


def test_items_are_pixels_class_and_index(dataset: MaskSplitByProfileDataset) -> None:
    for index in (0, 5, len(dataset) - 1):
        pixels, label, back = dataset[index]
        assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (32, 32, 3))
        expected = SPEC.resize(read_image(dataset.paths[index]))
        np.testing.assert_array_equal(pixels.numpy(), expected)
        assert (label, back) == (class_by_hand("multi", dataset.paths[index]), index)
        assert type(label) is int


def test_a_batch_is_its_items(dataset: MaskSplitByProfileDataset) -> None:
    indices = [3, 0, 83, 3, 41]
    pixels, labels, back = dataset.__getitems__(indices)
    items = [dataset[index] for index in indices]
    assert torch.equal(pixels, torch.stack([item[0] for item in items]))
    assert labels.tolist() == [item[1] for item in items]
    assert back.tolist() == indices
    assert labels.dtype == back.dtype == torch.int64


def test_what_is_done_to_a_batch_stays_out_of_the_cache(
    dataset: MaskSplitByProfileDataset,
) -> None:
    before = dataset[2][0].clone()
    dataset[2][0].zero_()
    dataset.__getitems__([2])[0].zero_()
    assert torch.equal(dataset[2][0], before)


# --- the split ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"val_ratio": 0.3}, {"fold": 1, "folds": 4}])
def test_split_is_by_person_and_complete(
    dataset: MaskSplitByProfileDataset, how: dict[str, float]
) -> None:
    train, val, people = dataset.split(**how, seed=3)
    sides = [{dataset.people[index] for index in side.indices} for side in (train, val)]
    assert not sides[0] & sides[1]
    assert sides == [set(people.train), set(people.val)]
    assert sorted([*train.indices, *val.indices]) == list(range(len(dataset)))
    assert len(val) == len(people.val) * 7


def test_folds_validate_everybody_once(dataset: MaskSplitByProfileDataset) -> None:
    held = [i for fold in range(5) for i in dataset.split(fold=fold, folds=5, seed=1)[1].indices]
    assert sorted(held) == list(range(len(dataset)))


def test_all_tasks_split_alike(root: Path) -> None:
    sides = {cls: make(root, cls).split(seed=5)[2].val for cls in (MaskGenderDataset, AgeDataset)}
    assert len(set(sides.values())) == 1


def test_split_table_says_both_sides(dataset: MaskSplitByProfileDataset) -> None:
    _, _, people = dataset.split(val_ratio=0.25, seed=3)
    rows = dataset.split_table(people).splitlines()[1:]
    sides = {row.split(",")[0]: row.split(",")[-1] for row in rows}
    assert {person for person, side in sides.items() if side == "val"} == people.val
    assert {person for person, side in sides.items() if side == "train"} == people.train


# --- unreadable pictures -----------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Six people; two pictures of one and all of another cannot be read."""
    root = make_sample(tmp_path / "broken", people=6, eval_people=6, progress=False)
    first, second, *_ = sorted((root / "train" / "images").iterdir())
    for path in [*sorted(first.iterdir())[:2], *second.iterdir()]:
        path.write_bytes(b"no picture")
    return root


def test_unreadable_pictures_are_left_out(broken: Path) -> None:
    data = make(broken)
    assert len(data) == len(data.paths) == len(data.people) == 6 * 7 - 9
    assert len(data.unreadable) == 9
    for index in range(len(data)):  # what follows a gap has still its own pixels and label
        pixels, label, _ = data[index]
        np.testing.assert_array_equal(pixels.numpy(), SPEC.resize(read_image(data.paths[index])))
        assert label == class_by_hand("multi", data.paths[index])
    whole = data.__getitems__(range(len(data)))[0]
    assert all(torch.equal(whole[index], data[index][0]) for index in range(len(data)))
    train, val, people = data.split(val_ratio=0.5, seed=0)
    assert len(people.train | people.val) == 6
    assert sorted([*train.indices, *val.indices]) == list(range(len(data)))


def test_strict_refuses_and_names_them(broken: Path) -> None:
    with pytest.raises(PictureError, match="9 unreadable") as caught:
        make(broken, strict=True)
    assert sorted((broken / "train" / "images").iterdir())[1].name in str(caught.value)


def test_nothing_readable(broken: Path) -> None:
    for path in broken.glob("train/images/*/*"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of 42 pictures can be read"):
        make(broken)


def test_a_side_without_pictures(broken: Path) -> None:
    keep = sorted((broken / "train" / "images").iterdir())[-1]
    for path in broken.glob("train/images/*/*"):
        if path.parent != keep:
            path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="no readable picture of the"):
        make(broken).split(val_ratio=0.5, seed=0)


# --- pictures without labels -------------------------------------------------------------------


def test_test_dataset(root: Path, tmp_path: Path) -> None:
    paths = sorted((root / "eval" / "images").iterdir())[:3]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    data = TestDataset([*paths, bad], SPEC)
    assert len(data) == 4
    for index, path in enumerate(paths):
        pixels, back = data[index]
        np.testing.assert_array_equal(pixels.numpy(), SPEC.resize(read_image(path)))
        assert back == index
    with pytest.raises(PictureError, match=r"bad\.jpg"):
        data[3]


# --- loaders -----------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(2, 70), st.integers(0, 2**31 - 1), st.integers(0, 50))
def test_an_epoch_holds_each_picture_once(size: int, batch: int, seed: int, epoch: int) -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = EpochBatches(size, batch, seed)
        sampler.epoch = epoch
        batches = list(sampler)
        assert len(sampler) == len(batches)
        return batches

    batches = order(seed, epoch)
    assert sorted(index for part in batches for index in part) == list(range(size))
    sizes = [len(part) for part in batches]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(size, 2)  # batch normalisation cannot train on one picture
    assert max(sizes) <= max(batch, 3)
    assert order(seed, epoch) == batches
    if size > 20:
        assert order(seed, epoch + 1) != batches
        assert order(seed + 1, epoch) != batches


CLASSES = np.repeat([0, 1, 2], [60, 25, 5])


def drawn(power: float, seed: int = 1, epoch: int = 1, start: int = 0) -> list[list[int]]:
    sampler = EpochBatches(len(CLASSES), 8, seed, CLASSES, power)
    sampler.epoch, sampler.start = epoch, start
    return list(sampler)


@pytest.mark.parametrize(("power", "expected"), [(0.5, [47, 30, 13]), (1.0, [30, 30, 30])])
def test_an_epoch_holds_the_classes_that_sampling_asks_for(
    power: float, expected: list[int]
) -> None:
    # 60 : 25 : 5 pictures; their roots are 7.746 : 5 : 2.236, of 90 draws 46.5 : 30.0 : 13.4.
    for epoch in range(5):
        positions = np.concatenate(drawn(power, epoch=epoch))
        counts = np.bincount(CLASSES[positions % len(CLASSES)])
        assert abs(counts - expected).max() <= 1
        assert counts.sum() == len(CLASSES)  # an epoch is as long as without


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.sampled_from([0.5, 1.0]),
    st.integers(0, 99),
)
def test_draws_of_a_class_are_spread_over_its_pictures(
    sizes: list[int], power: float, epoch: int
) -> None:
    classes = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    sampler = EpochBatches(len(classes), 8, 1, classes, power)
    sampler.epoch = epoch
    positions = np.concatenate(list(sampler))
    assert len(set(positions)) == len(positions) == len(classes)  # no draw equals another
    times = np.bincount(positions % len(classes), minlength=len(classes))
    for position, count in enumerate(times):
        copies = set(positions[positions % len(classes) == position] // len(classes))
        assert copies == set(range(count))
    for label, size in enumerate(sizes):
        own = times[classes == label]
        assert own.max() - own.min() <= 1
        if size == min(sizes):
            assert own.min() >= 1  # each picture of the rarest class


def test_sampled_batches_depend_on_seed_and_epoch_alone() -> None:
    usual = drawn(1.0)
    assert drawn(1.0) == usual
    assert drawn(1.0, start=4) == usual[4:]  # as a resumed training has them
    assert drawn(1.0, seed=2) != usual != drawn(1.0, epoch=2)
    common = [set(np.concatenate(drawn(1.0, epoch=epoch)) % 90) - set(range(60, 90))
              for epoch in range(12)]  # fmt: skip
    assert set.union(*common) == set(range(60))  # a large class comes in turns


def test_a_picture_drawn_again_has_another_index(dataset: MaskSplitByProfileDataset) -> None:
    pictures = dataset.split(val_ratio=0.3, seed=3)[0]
    loader = training_loader(pictures, batch_size=8, seed=1, sampling="balanced")
    keys: list[int] = []
    for pixels, labels, indices in loader:
        again = dataset.__getitems__((indices % len(dataset)).tolist())
        assert torch.equal(pixels, again[0]) and torch.equal(labels, again[1])
        keys += indices.tolist()
    assert len(set(keys)) == len(keys) == len(pictures)
    assert {key % len(dataset) for key in keys} <= set(pictures.indices)
    assert max(keys) >= len(dataset)


def test_training_loader(dataset: MaskSplitByProfileDataset) -> None:
    pictures = dataset.split(val_ratio=0.3, seed=3)[0]
    loader = training_loader(pictures, batch_size=8, seed=1)
    epochs = []
    for epoch in (1, 2, 1):
        loader.batch_sampler.epoch = epoch
        seen: list[int] = []
        for pixels, labels, indices in loader:
            again = dataset.__getitems__(indices.tolist())
            assert torch.equal(pixels, again[0]) and torch.equal(labels, again[1])
            seen += indices.tolist()
        assert sorted(seen) == sorted(pictures.indices)
        epochs.append(seen)
    assert epochs[0] == epochs[2] != epochs[1]
    assert epochs[0] != sorted(epochs[0])


def test_validation_loader_is_in_order(dataset: MaskSplitByProfileDataset) -> None:
    pictures = Subset(dataset, list(range(5, 40)))
    batches = list(validation_loader(pictures, batch_size=16))
    assert [len(labels) for _, labels, _ in batches] == [16, 16, 3]
    assert torch.cat([indices for _, _, indices in batches]).tolist() == list(range(5, 40))
    counts = Counter(torch.cat([labels for _, labels, _ in batches]).tolist())
    assert counts == Counter(int(dataset.labels[index]) for index in range(5, 40))


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 9))
def test_each_row_of_a_batch_is_computed_once(count: int, processes: int, parts: int) -> None:
    shares = [Share(process, processes, parts) for process in range(processes)]
    alone = [rows for [rows] in Share(parts=parts).pieces(count)]
    for own, together in zip(alone, shares[0].pieces(count), strict=True):
        assert np.concatenate(together).tolist() == own.tolist()  # the same parts
        assert max(map(len, together)) - min(map(len, together)) <= 1
    assert np.concatenate(alone).tolist() == list(range(count))
    rows = []
    for share in shares:
        assert share.sizes(count) == shares[0].sizes(count)
        own = share.rows(count)
        real = sum(part[share.process] for part in share.sizes(count))
        assert len(own) == max(1, real)  # a process without rows has one that does not count
        rows += own[:real].tolist()
    assert sorted(rows) == list(range(count))


def test_processes_load_their_own_pixels_and_all_classes(
    dataset: MaskSplitByProfileDataset,
) -> None:
    pictures = dataset.split(val_ratio=0.3, seed=3)[0]
    for make_loader in (
        lambda share: training_loader(pictures, 9, 1, "balanced", share),
        lambda share: validation_loader(pictures, 9, share),
    ):
        shares = [Share(process, 3, 2) for process in range(3)]
        for whole, *batches in zip(*map(make_loader, (None, *shares)), strict=True):
            for share, (pixels, labels, indices) in zip(shares, batches, strict=True):
                assert torch.equal(labels, whole[1]) and torch.equal(indices, whole[2])
                assert torch.equal(pixels, whole[0][share.rows(len(labels))])
