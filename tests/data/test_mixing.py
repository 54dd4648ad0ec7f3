"""What is mixed, that targets follow the pixels, and that nothing else decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskcls.data.mixing import CUTS, MIXUP_ALPHA, Mixing

SIZE = 12, 40


def batch_of(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of one level each, 1 … count, and targets that say which one it is."""
    levels = torch.arange(1, count + 1, dtype=torch.float32)
    return levels[:, None, None, None].expand(-1, 3, *SIZE).clone(), torch.eye(count)


@given(
    count=st.integers(1, 9),
    mixup=st.floats(0, 0.5),
    cutmix=st.floats(0, 0.5),
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(1, 99),
)
def test_targets_are_the_parts_of_the_pixels(
    count: int, mixup: float, cutmix: float, seed: int, epoch: int
) -> None:
    images, targets = batch_of(count)
    indices = [7 * number for number in range(count)]
    mixed, shares = Mixing(mixup, cutmix, seed)(images, targets, indices, epoch)
    assert mixed.shape == images.shape
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(count))
    # The mean level of a picture is the mean of the levels of those it is made of.
    levels = torch.arange(1, count + 1, dtype=torch.float32)
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), shares @ levels, rtol=1e-5, atol=1e-5)
    for row in range(count):
        others = set(range(count)) - {row, count - 1 - row}
        assert not shares[row, list(others)].any()


def test_shares_of_the_pictures_are_those_asked_for() -> None:
    images, targets = batch_of(2)
    blended = cut = 0
    positions, own = [], []
    for index in range(3000):
        mixed, shares = Mixing(0.3, 0.5, seed=1)(images, targets, [index, 10**6], epoch=2)
        row = mixed[0, 0, 0]
        if row.unique().numel() > 1:
            cut += 1
            change = int((row == 2).nonzero()[0])
            assert (row[:change] == 1).all() and (row[change:] == 2).all()
            assert (mixed[0] == row).all()  # from top to bottom, in all channels
            positions.append(change / SIZE[1])
        elif shares[0, 0] != 1:
            blended += 1
            own.append(float(shares[0, 0]))
    assert blended / 3000 == pytest.approx(0.3, abs=0.03)
    assert cut / 3000 == pytest.approx(0.5, abs=0.03)
    assert min(positions) == pytest.approx(CUTS[0], abs=0.02)
    assert max(positions) == pytest.approx(CUTS[1], abs=0.02)
    assert np.mean(own) == pytest.approx(0.5, abs=0.05)


def test_nothing_asked_for_changes_nothing() -> None:
    images, targets = batch_of(5)
    mixed, shares = Mixing(0, 0)(images, targets, range(5), epoch=1)
    assert torch.equal(mixed, images)
    assert torch.equal(shares, targets)


def test_seed_epoch_and_index_decide_and_nothing_else() -> None:
    images, targets = batch_of(4)

    def shares(seed: int = 3, epoch: int = 5, indices: tuple[int, ...] = (1, 2, 3, 4)) -> list:
        torch.rand(1)
        np.random.rand(1)
        return Mixing(1.0, 0.0, seed)(images, targets, indices, epoch)[1].amax(dim=1).tolist()

    usual = shares()
    assert usual == shares()
    for other in (shares(seed=4), shares(epoch=6), shares(indices=(11, 12, 13, 14))):
        assert not set(usual) & set(other)
    assert shares(indices=(9, 2, 3, 8))[1:3] == usual[1:3]  # whatever else is in the batch


def partners(rarity: np.ndarray | None, epoch: int, indices: list[int], seed: int = 3) -> list[int]:
    """Row of the batch → row of the picture that it is mixed with."""
    images, targets = batch_of(len(indices))
    shares = Mixing(0.0, 1.0, seed, rarity)(images, targets, indices, epoch)[1]
    shares[range(len(indices)), range(len(indices))] = 0
    return shares.argmax(dim=1).tolist()


def test_rare_pictures_are_paired_as_often_as_their_rarity_says() -> None:
    # 60 pictures of one class, 25 of another and 5 of a third: each of the third counts twelvefold.
    classes = np.repeat([0, 1, 2], [60, 25, 5])
    rarity = 1 / np.bincount(classes)[classes]
    indices = [0, 1, 2, 3, 60, 61, 85]
    found = np.zeros((7, 7))
    for epoch in range(1500):
        for row, partner in enumerate(partners(rarity, epoch, indices)):
            found[row, partner] += 1 / 1500
    assert not found.diagonal().any()  # nobody is paired with himself
    for row in range(7):
        chances = rarity[indices]
        chances[row] = 0
        np.testing.assert_allclose(found[row], chances / chances.sum(), atol=0.05)
    assert found[:6, 6].min() > 0.5  # the only one of the rare class is in most mixed pictures


def test_the_partner_is_a_function_of_seed_epoch_and_index() -> None:
    rarity = np.random.default_rng(0).uniform(0.1, 1, 50)
    indices = [4, 9, 14, 19, 24, 29, 34, 39]
    usual = partners(rarity, 1, indices)
    assert partners(rarity, 1, indices) == usual
    assert partners(rarity, 2, indices) != usual != partners(rarity, 1, indices, seed=4)
    again = [index + 50 for index in indices]  # drawn once more: other numbers, the same rarity
    assert partners(rarity, 1, again) != usual


def test_rarity_changes_whom_and_nothing_else() -> None:
    images, targets = batch_of(6)
    for mixing in ((0.4, 0.4), (0.0, 0.0)):
        plain = Mixing(*mixing, 5)(images, targets, range(6), 1)[1]
        rare = Mixing(*mixing, 5, np.ones(6))(images, targets, range(6), 1)[1]
        assert torch.equal(plain.diagonal(), rare.diagonal())  # which pictures, and how much


def test_without_rarity_the_batch_is_mixed_with_itself_backwards() -> None:
    """What runs from before `mix_rare` did, bit for bit."""
    generator = torch.Generator().manual_seed(0)
    images, targets = torch.rand(7, 3, *SIZE, generator=generator), torch.eye(7)
    kept = torch.ones(7, SIZE[1])
    for row in range(7):
        rng = np.random.default_rng((2, 3, row, 1))
        chance = rng.random()
        if chance < 0.4:
            kept[row] = rng.beta(MIXUP_ALPHA, MIXUP_ALPHA)
        elif chance < 0.8:
            kept[row, round(rng.uniform(*CUTS) * SIZE[1]) :] = 0
    assert len(kept.mean(dim=1).unique()) > 3
    mixed, shares = Mixing(0.4, 0.4, 2)(images, targets, range(7), 3)
    assert torch.equal(mixed, torch.lerp(images.flip(0), images, kept[:, None, None]))
    assert torch.equal(shares, torch.lerp(targets.flip(0), targets, kept.mean(1, keepdim=True)))


def test_one_picture_alone_has_no_other_to_be_mixed_with() -> None:
    images, targets = batch_of(1)
    mixed, shares = Mixing(0.5, 0.5, 1, np.ones(1))(images, targets, [0], 1)
    assert torch.allclose(mixed, images) and torch.allclose(shares, targets)
