"""A label audit: people and pictures, ranked by how much out-of-fold predictions contradict their
labels, and the corrections that follow from it, for somebody to review.

Gender and age are facts about a person, the mask is one about a picture: what is judged is the
person, from all their pictures together, or the single picture.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from maskcls.data.fixes import PICTURE_FIELDS, Fix, apply_fixes
from maskcls.data.profiles import Picture, Profile, nfc, read_profiles
from maskcls.errors import DataError
from maskcls.evaluation.label_errors import (
    ONE_AGE,
    Judgement,
    age_agreement,
    calibrate_to_labels,
    find_swaps,
    judge,
    median_steps,
    middle_years,
    pool,
    refine_ages,
)
from maskcls.evaluation.oof import OofTable
from maskcls.files import replacing, write_rows
from maskcls.labels import ATTRIBUTES, AgeLabels, GenderLabels, MaskLabels, Task
from maskcls.provenance import provenance_path

RANKING_COLUMNS = (
    *("attribute", "rank", "target", "label", "answer", "doubt", "p_label", "p_answer"),
    *("pictures", "contradicted", "why"),
)


@dataclass(frozen=True)
class Finding:
    """One label, and what is answered in its place."""

    attribute: str
    target: str  # as in a table of fixes: a person's folder, or a picture in it
    profile: Profile
    picture: Picture | None  # where the label is a picture's
    label: int  # classes of the attribute
    answer: int  # the most probable class other than the label
    doubt: float  # 0..1, what ranks: 1 - the support of the label
    label_probability: float
    answer_probability: float
    pictures: tuple[tuple[Path, float], ...]  # that were answered, and the label's probability
    contradicted: bool
    why: str
    answer_age: int | None = None  # years that were answered, where they are known
    swapped_with: str | None = None  # the target whose label it has

    @property
    def label_name(self) -> str:
        """The label; of an age in years, too."""
        name = ATTRIBUTES[self.attribute][self.label]
        return f"{name} ({self.profile.age})" if self.attribute == "age" else name

    @property
    def answer_name(self) -> str:
        return ATTRIBUTES[self.attribute][self.answer]


@dataclass(frozen=True)
class Audit:
    """What came of it."""

    files: tuple[Path, ...]
    data_dirs: tuple[Path, ...]
    fixes: tuple[Fix, ...]  # that the trainings had
    rankings: Mapping[str, Sequence[Finding]]  # attribute → all its labels, the most doubtful first
    cautions: Mapping[str, Sequence[str]]  # attribute → why to believe its ranking less, sentences


def audit_labels(predictions: Sequence[OofTable]) -> Audit:
    """Predictions of one or several tasks, or of several trainings of one: what answers the same
    label is taken together.

    Raises:
        DataError: none given; of trainings with different corrections; a data folder that cannot be
            read; a picture that is not in it, or has another label there.
    """
    if not predictions:
        raise DataError("no out-of-fold predictions were given")
    fixes = predictions[0].fixes
    for one in predictions:
        if set(one.fixes) != set(fixes):
            raise DataError(
                f"{predictions[0].file} and {one.file}: of trainings with different --fixes; audit "
                "them one by one"
            )
    people = _People(predictions, fixes)
    rows: dict[str, list[_Row]] = {name: [] for name in ATTRIBUTES}
    for one in predictions:
        _collect(one, people, rows)
    corrected = {(nfc(fix.target), fix.field) for fix in fixes}
    rankings = {name: _rank(name, each, corrected) for name, each in rows.items() if each}
    return Audit(
        tuple(one.file for one in predictions),
        people.data_dirs,
        fixes,
        rankings,
        {name: list(_cautions(name, each, predictions)) for name, each in rankings.items()},
    )


def chosen(ranking: Sequence[Finding], top: int | float) -> list[Finding]:
    """The contradicted labels among the first `top` of a ranking, an int, or among so large a share
    of it, a float; with the other half of each swap."""
    count = top if isinstance(top, int) else int(np.ceil(top * len(ranking)))
    first = [finding for finding in ranking[:count] if finding.contradicted]
    targets = {finding.target for finding in first}
    partners = {finding.swapped_with for finding in first if finding.swapped_with} - targets
    return first + [finding for finding in ranking[count:] if finding.target in partners]


def propose(audit: Audit, findings: Sequence[Finding]) -> list[Fix]:
    """The corrections that the findings ask for, after the ones that there were, which stay: one
    table for `maskcls-data check` and for training. A finding that takes an earlier one back
    leaves neither of them.

    The new age can only be a guess: the years that were answered, or the median of the people
    labelled with that group, where only groups were answered or all of these have one age. Nothing
    is proposed for people with two labels in two data folders, nor for names that are no UTF-8: a
    table of fixes cannot name them.
    """
    table = {(nfc(fix.target), fix.field): fix for fix in audit.fixes}
    ambiguous = _labelled_twice(audit)
    for finding in findings:
        key = (nfc(finding.target), finding.attribute)
        if key in ambiguous or not _is_utf8(finding.target):
            continue
        new, note = _new_value(audit, finding)
        old = _value(finding)
        earlier = table.pop(key, None)
        if earlier is not None:
            old = earlier.old
            if _same_class(finding.attribute, old, finding.answer):
                continue
        table[key] = Fix(finding.target, finding.attribute, old, new, f"{finding.why}{note}")
    return list(table.values())


def write_ranking(audit: Audit, path: Path) -> None:
    """All labels that were judged as a CSV table, whole or not at all.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        rows = (
            (
                *(finding.attribute, rank, finding.target, finding.label_name),
                *(finding.answer_name, f"{finding.doubt:.6f}"),
                *(f"{finding.label_probability:.6f}", f"{finding.answer_probability:.6f}"),
                *(len(finding.pictures), int(finding.contradicted), finding.why),
            )
            for ranking in audit.rankings.values()
            for rank, finding in enumerate(ranking, start=1)
        )
        write_rows(file, itertools.chain([RANKING_COLUMNS], rows))


# --- predictions and the data they are of --------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Row:
    """One answer to one picture."""

    profile: Profile
    picture: Picture
    label: int  # classes of the attribute
    probabilities: np.ndarray  # (C,) of the attribute
    years: tuple[int, ...] = ()  # (S) the first of each step of ages, where those were answered
    ages: np.ndarray | None = None  # (S,) their probabilities


class _People:
    """The pictures of the data folders that predictions name."""

    def __init__(self, predictions: Sequence[OofTable], fixes: Sequence[Fix]) -> None:
        names = {name for one in predictions for name in one.data_dirs}
        self._folders = {name: Path(name).resolve() for name in sorted(names)}
        self.data_dirs = tuple(map(Path, self._folders))
        named = {folder: Path(name) for name, folder in self._folders.items()}
        try:
            profiles = [read_profiles(name) for name in named.values()]
        except DataError as error:
            files = ", ".join(str(one.file) for one in predictions)
            raise DataError(
                f"{error}; it is a data folder of {files}, relative to where the training ran"
            ) from None
        fixed = iter(apply_fixes([one for part in profiles for one in part], fixes))
        self._pictures = {
            (folder, f"{profile.person}/{nfc(picture.path.name)}"): (profile, picture)
            for folder, part in zip(named, profiles, strict=True)
            for profile in itertools.islice(fixed, len(part))
            for picture in profile.pictures
        }

    def find(self, data_dir: str, path: str) -> tuple[Profile, Picture] | None:
        return self._pictures.get((self._folders[data_dir], nfc(path)))


def _collect(one: OofTable, people: _People, rows: dict[str, list[_Row]]) -> None:
    """Adds the answers to the rows of each attribute.

    Raises:
        DataError: a picture that is not in the data, or has another label there.
    """
    marginals = one.task.marginals(one.probabilities)
    for number, label in enumerate(one.labels.tolist()):
        found = people.find(one.data_dirs[number], one.paths[number])
        if found is None:
            raise DataError(
                f"{one.where(number)}: no picture {one.paths[number]!r} in "
                f"{one.data_dirs[number]}, or the person is not in its train.csv"
            )
        profile, picture = found
        if _label(one.task, profile, picture) != label:
            own = one.task.class_names[_label(one.task, profile, picture)]
            raise DataError(
                f"{one.where(number)}: {one.paths[number]!r} is labelled "
                f"{one.task.class_names[label]!r} there, and {own!r} in the data, with the "
                f"corrections that {provenance_path(one.file).name} names; train anew"
            )
        for attribute, digit in one.task.decode(label).items():
            row = _Row(profile, picture, digit, marginals[attribute][number])
            if attribute == "age" and one.ages is not None:
                row = replace(row, years=one.years, ages=one.ages[number])
            rows[attribute].append(row)


def _label(task: Task, profile: Profile, picture: Picture) -> int:
    return int(task.encode(mask=picture.mask, gender=profile.gender, age=profile.age_group))


# --- judging -------------------------------------------------------------------------------------


def _rank(
    attribute: str, rows: Sequence[_Row], corrected: Container[tuple[str, str]]
) -> list[Finding]:
    """All labels of an attribute, the most doubtful first; `corrected`: (target, attribute) of
    labels that are not the data's own."""
    of_picture = attribute in PICTURE_FIELDS
    facts: dict[tuple[str, int], list[int]] = {}
    for number, row in enumerate(rows):
        # As tables of fixes see it: what has the same name in two data folders is one. With two
        # labels, of which an age is one, it is two facts.
        name = nfc(_target(attribute, row))
        label = row.profile.age if attribute == "age" else row.label
        facts.setdefault((name, label), []).append(number)
    members = list(facts.values())
    whose = np.empty(len(rows), dtype=np.int64)
    for fact, numbers in enumerate(members):
        whose[numbers] = fact
    firsts = [rows[numbers[0]] for numbers in members]
    labels = np.array([row.label for row in firsts])
    logits = pool(np.stack([row.probabilities for row in rows]), whose, len(members))
    probabilities = calibrate_to_labels(logits, labels)
    ages = _judge_ages(rows, whose, firsts, probabilities) if attribute == "age" else None
    judgement = judge(probabilities, labels, None if ages is None else ages.support)
    if ages is not None and ages.doubt is not None:
        judgement = replace(judgement, doubt=ages.doubt)
    findings = [
        _finding(
            attribute,
            judgement,
            fact,
            row,
            [rows[number] for number in members[fact]],
            ages,
        )
        for fact, row in enumerate(firsts)
    ]
    if of_picture:
        owners = [row.profile.person for row in firsts]
        for swap in find_swaps(judgement.probabilities, labels, owners):
            if not judgement.contradicted[[swap.one, swap.other]].any():
                continue  # two guesses do not make a reason
            one, other = findings[swap.one], findings[swap.other]
            findings[swap.one] = _swapped(one, other, swap.doubt)
            findings[swap.other] = _swapped(other, one, swap.doubt)
    findings = [
        replace(one, why=f"{one.why}; the label is an earlier correction")
        if (nfc(one.target), attribute) in corrected
        else one
        for one in findings
    ]
    return sorted(findings, key=lambda finding: (-finding.doubt, finding.target))


@dataclass(frozen=True, eq=False)
class _Ages:
    """What is answered about the ages of N people. Other years of the right group are a reason to
    doubt a label, and none to contradict it: who trains, trains on groups."""

    support: np.ndarray  # (N,) of the labels, by the years of other groups
    agreement: np.ndarray  # (N, 3) of what is answered in each group with the labelled ages
    doubt: np.ndarray | None = None  # (N,) by all years; None where only groups were answered
    answered: np.ndarray | None = None  # (N, 3) years: the median of each group


def _judge_ages(
    rows: Sequence[_Row], whose: np.ndarray, firsts: Sequence[_Row], probabilities: np.ndarray
) -> _Ages:
    """`probabilities` (N, 3), calibrated, of the groups. Finer ages count where all answers have
    them, in the same steps."""
    labelled = np.array([row.profile.age for row in firsts])
    steps = [row.ages for row in rows if row.ages is not None]
    years = firsts[0].years
    if len(steps) < len(rows) or any(row.years != years for row in rows):
        agreement = age_agreement(labelled)
        return _Ages((probabilities * agreement).sum(axis=1), agreement)
    shares = refine_ages(probabilities, pool(np.stack(steps), whose, len(firsts)), years)
    agreement = age_agreement(labelled, years, own_group=1)
    doubt = 1 - (shares * age_agreement(labelled, years)).sum(axis=1)
    medians = median_steps(shares, years)
    return _Ages(
        (shares * agreement).sum(axis=1),
        np.take_along_axis(agreement, medians, axis=1),
        np.clip(doubt, 0, 1),
        middle_years(years)[medians],
    )


def _target(attribute: str, row: _Row) -> str:
    """What the label is of, as a table of fixes names it."""
    person = row.profile.folder.name
    return f"{person}/{row.picture.path.name}" if attribute in PICTURE_FIELDS else person


def _finding(
    attribute: str,
    judgement: Judgement,
    fact: int,
    row: _Row,
    rows: Sequence[_Row],
    ages: _Ages | None,
) -> Finding:
    label, answer = row.label, int(judgement.rival[fact])
    own, other = (float(judgement.probabilities[fact, each]) for each in (label, answer))
    names = ATTRIBUTES[attribute]
    of_picture = attribute in PICTURE_FIELDS
    shown: dict[Path, list[float]] = {}  # several trainings may have answered a picture
    for each in rows:
        shown.setdefault(each.picture.path, []).append(float(each.probabilities[label]))
    answer_age = None
    if ages is not None and ages.answered is not None:
        answer_age = int(ages.answered[fact, answer])
    contradicted = bool(judgement.contradicted[fact])
    # Of a group that is hardly answered, the years say nothing.
    about = f" (about {answer_age})" if contradicted and answer_age is not None else ""
    why = f"answered {names[answer]}{about} with {other:.2f}, {names[label]} with {own:.2f}"
    if not of_picture:
        why += f", on {len(shown)} {'pictures' if len(shown) > 1 else 'picture'}"
    if ages is not None and ages.agreement[fact, answer] >= 0.01:
        share = ages.agreement[fact, answer]
        why += f"; a labelled age of {row.profile.age} agrees with that to {share:.0%}"
    return Finding(
        attribute,
        _target(attribute, row),
        row.profile,
        row.picture if of_picture else None,
        label,
        answer,
        float(judgement.doubt[fact]),
        own,
        other,
        tuple((path, statistics.fmean(values)) for path, values in shown.items()),
        contradicted,
        why,
        answer_age,
    )


def _swapped(finding: Finding, other: Finding, doubt: float) -> Finding:
    assert other.picture is not None  # for mypy: swaps are of pictures
    why = f"swapped with {other.picture.path.name}: {finding.why}"
    return replace(
        finding,
        answer=other.label,
        doubt=max(doubt, finding.doubt, other.doubt),
        contradicted=True,
        why=why,
        swapped_with=other.target,
    )


def _cautions(
    attribute: str, ranking: Sequence[Finding], predictions: Sequence[OofTable]
) -> Iterator[str]:
    # Of each labelled class alike: where few of a rare one are, most may be wrong.
    answered: dict[int, list[bool]] = {}
    for one in ranking:
        agrees = one.label_probability > one.answer_probability
        answered.setdefault(one.label, []).append(agrees)
    share = statistics.fmean(statistics.fmean(each) for each in answered.values())
    if share <= 1 / len(answered) < 1:
        yield (
            f"of each label alike, {share:.0%} are what is answered, and {1 / len(answered):.0%} "
            "would be by chance: these networks have hardly learnt to tell; train longer, or on "
            "more people, before believing what they contradict"
        )
    if attribute == "age":
        yield from _years_left_out([one for one in predictions if "age" in one.task.attributes])


def _years_left_out(predictions: Sequence[OofTable]) -> Iterator[str]:
    if len({one.years for one in predictions}) < 2:
        return
    groups = [str(one.file) for one in predictions if not one.years]
    if groups:
        yield (
            f"{' and '.join(groups)} {'has' if len(groups) == 1 else 'have'} no years, so groups "
            "alone are judged; maskcls-evaluate --oof writes them, of networks that learnt them"
        )
    else:
        files = " and ".join(str(one.file) for one in predictions)
        yield f"{files} have ages in different steps, so groups alone are judged"


# --- corrections ---------------------------------------------------------------------------------


def _labelled_twice(audit: Audit) -> set[tuple[str, str]]:
    """(target, attribute) of people whose label differs between data folders."""
    seen: set[tuple[str, str]] = set()
    twice: set[tuple[str, str]] = set()
    for ranking in audit.rankings.values():
        for finding in ranking:
            key = (nfc(finding.target), finding.attribute)
            (twice if key in seen else seen).add(key)
    return twice


def _value(finding: Finding) -> str:
    """The label as it stands in a table of fixes."""
    if finding.attribute == "age":
        return str(finding.profile.age)
    return _name(finding.attribute, finding.label)


def _name(attribute: str, label: int) -> str:
    kind = {"mask": MaskLabels, "gender": GenderLabels}[attribute]
    return kind(label).name.lower()


def _new_value(audit: Audit, finding: Finding) -> tuple[str, str]:
    """What the label should be, in a table of fixes, and a note on it."""
    if finding.attribute != "age":
        return _name(finding.attribute, finding.answer), ""
    ages = list(_good_ages(audit, finding.answer))
    one_age = len(ages) >= ONE_AGE and len(set(ages)) == 1
    if finding.answer_age is not None and not one_age:
        guess = f"{finding.answer_age} is what was answered"
        return str(finding.answer_age), f"; {guess}: put the true age if you know it"
    new = statistics.median_low(ages)
    return str(new), f"; {new} is the median age of that group: put the true one if you know it"


def _good_ages(audit: Audit, group: int) -> Iterator[int]:
    """Labelled ages of the people of a group, those that are contradicted only if there are no
    others."""
    people = [finding for finding in audit.rankings["age"] if finding.label == group]
    good = [finding for finding in people if not finding.contradicted]
    return (finding.profile.age for finding in good or people)


def _same_class(attribute: str, old: str, answer: int) -> bool:
    """Whether a value of a table of fixes is of that class."""
    if attribute == "age":
        return AgeLabels.from_number(old) == answer
    return old.lower() == _name(attribute, answer)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
