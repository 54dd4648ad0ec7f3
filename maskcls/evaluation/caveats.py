"""Why a score of trained networks flatters them."""

from __future__ import annotations

from collections.abc import Collection

from maskcls.classifier import TorchClassifier
from maskcls.provenance import fingerprint, names_all


def caveats(engine: TorchClassifier, people: Collection[str], pictures: int) -> list[str]:
    """What the networks have had of the people who score them, beside the choice of the epoch: a
    sentence each, none where there is nothing. `pictures`: so many of theirs are, by person or by
    content, in the training of a network."""
    found = []
    trained_on = engine.trained_on or frozenset()
    if not names_all(engine.trained_on):
        found.append(
            "a network does not say whom all it, or what it started from, was trained on; if these "
            "people are among them, the scores flatter"
        )
    if seen := sorted(person for person in set(people) if fingerprint(person) in trained_on):
        found.append(
            f"{len(seen)} of these people are in the training of a network that one of these "
            f"started from, first: {seen[0]}; the scores flatter"
        )
    elif pictures:
        found.append(
            f"{pictures} of these pictures are in the training of a network too, in another "
            "person's folder; the scores flatter, and maskcls-data check names them"
        )
    if engine.greedy:
        found.append(
            f"the networks in the greedy soup of {' and '.join(engine.greedy)} were chosen on "
            "people who are scored here; the scores flatter"
        )
    if engine.calibrated:
        found.append(
            f"the calibration of {' and '.join(engine.calibrated)} was fitted on people who are "
            "scored here; the scores flatter"
        )
    return found
