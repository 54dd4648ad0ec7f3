"""What is mixed, that targets follow the pixels, and that nothing else decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskcls.data.mixing import CUTS, Mixing

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
