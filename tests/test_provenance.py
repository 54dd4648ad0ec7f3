"""Whom networks were trained on: what several of them know together."""

from __future__ import annotations

import pytest

from maskcls.provenance import OTHERS, names_all, seen_by_all

SOME, MORE = frozenset({-5, 3}), frozenset({3, 2**62})


@pytest.mark.parametrize(
    ("sets", "together"),
    [
        ([SOME, MORE], {-5, 3, 2**62}),
        ([SOME], SOME),
        ([frozenset(), frozenset()], frozenset()),  # they say: nobody
        ([SOME, None], None),
        ([None], None),
    ],
)
def test_networks_have_seen_whom_one_of_them_has(
    sets: list[frozenset[int] | None], together: frozenset[int] | None
) -> None:
    assert seen_by_all(sets) == together


def test_others_are_not_lost() -> None:
    assert names_all(seen_by_all([SOME, MORE]))
    assert not names_all(seen_by_all([SOME, frozenset({OTHERS})]))
    assert not names_all(seen_by_all([SOME, None]))
