"""The audit on data folders: what it ranks, the corrections it proposes, and its page."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskcls.data.fixes import Fix, apply_fixes, read_fixes, write_fixes
from maskcls.data.profiles import Profile, read_profiles
from maskcls.errors import DataError
from maskcls.evaluation.audit import Audit, audit_labels, chosen, propose, write_ranking
from maskcls.evaluation.gallery import read_thumbnails, render, write_gallery
from maskcls.evaluation.oof import read_oof
from maskcls.labels import TASKS, AgeLabels, GenderLabels, MaskLabels
from tests.evaluation.synthetic import age_answers, answers, write_oof
from tests.evaluation.test_report import Page, widths_in_a_browser

DataDir = Callable[..., Path]
SWAPPED = ("incorrect_mask", "normal")


@pytest.fixture
def root(data_dir: DataDir) -> Path:
    return data_dir(30)


def other_gender(person: Profile) -> Profile:
    return replace(person, gender=GenderLabels(1 - person.gender))


def swapped(person: Profile) -> Profile:
    """The same pictures, the labels of two of them exchanged."""
    masks = {"incorrect_mask": MaskLabels.NORMAL, "normal": MaskLabels.INCORRECT}
    pictures = (replace(one, mask=masks.get(one.path.stem, one.mask)) for one in person.pictures)
    return replace(person, pictures=tuple(pictures))


def audit_of(
    folder: Path, root: Path, task: str, truth: Sequence[Profile], fixes: Sequence[Fix] = ()
) -> Audit:
    """Of the data in `root`, by a classifier that sees what is true."""
    given = answers(np.random.default_rng(0), TASKS[task], truth)
    labelled = apply_fixes(read_profiles(root), fixes)
    file = write_oof(folder / f"{task}.csv", task, root, labelled, given, fixes)
    return audit_labels([read_oof(file)])


def all_chosen(audit: Audit) -> list[Fix]:
    found = [one for ranking in audit.rankings.values() for one in chosen(ranking, 1.0)]
    return propose(audit, found)


def test_wrong_people_and_swapped_pictures_are_found_and_put_right(
    root: Path, tmp_path: Path
) -> None:
    truth = read_profiles(root)
    truth[3], truth[20] = other_gender(truth[3]), other_gender(truth[20])
    truth[7], truth[20] = swapped(truth[7]), swapped(truth[20])
    audit = audit_of(tmp_path, root, "mask_gender", truth)
    assert {name: len(ranking) for name, ranking in audit.rankings.items()} == {
        "mask": 30 * 7,
        "gender": 30,
    }
    people = chosen(audit.rankings["gender"], 0.1)
    assert {one.target for one in people} == {truth[3].folder.name, truth[20].folder.name}
    pictures = chosen(audit.rankings["mask"], 4)
    assert {one.target for one in pictures} == {
        f"{truth[number].folder.name}/{stem}.jpg" for number in (7, 20) for stem in SWAPPED
    }
    for one in pictures:
        assert one.swapped_with in {other.target for other in pictures} - {one.target}
        assert "swapped with" in one.why
    # The table loads where it is meant for, and makes the labels true.
    write_fixes(tmp_path / "fixes.csv", all_chosen(audit))
    assert apply_fixes(read_profiles(root), read_fixes(tmp_path / "fixes.csv")) == truth


def test_two_guesses_are_no_swap(root: Path, tmp_path: Path) -> None:
    truth = read_profiles(root)
    given = answers(np.random.default_rng(0), TASKS["mask"], truth)
    names = [picture.path.stem for picture in truth[7].pictures]
    for stem, shares in (("mask1", (0.49, 0.51, 0)), ("incorrect_mask", (0.75, 0.25, 0))):
        given[7][names.index(stem)] = shares
    file = write_oof(tmp_path / "mask.csv", "mask", root, truth, given)
    findings = {one.target: one for one in audit_labels([read_oof(file)]).rankings["mask"]}
    for stem in ("mask1", "incorrect_mask"):
        finding = findings[f"{truth[7].folder.name}/{stem}.jpg"]
        assert finding.answer != finding.label and finding.answer_probability > 0.3
        assert not finding.contradicted and not finding.swapped_with


def test_a_swap_brings_its_other_half(root: Path, tmp_path: Path) -> None:
    truth = read_profiles(root)
    truth[7] = swapped(truth[7])
    ranking = audit_of(tmp_path, root, "mask", truth).rankings["mask"]
    assert len(chosen(ranking, 1)) == 2
    assert chosen(ranking, 1) == chosen(ranking, 50)


def test_wrong_ages_get_the_median_of_their_group(data_dir: DataDir, tmp_path: Path) -> None:
    ages = [20, 22, 24, 29, 21, 25, 40, 45, 50, 33, 47, 52, 62, 64, 70, 61, 68, 66] * 2
    root = data_dir(len(ages), ages=ages)
    truth = read_profiles(root)
    truth[0] = replace(truth[0], age=45)  # labelled 20
    truth[3] = replace(truth[3], age=31)  # labelled 29
    audit = audit_of(tmp_path, root, "age", truth)
    by_target = {one.target: one for one in audit.rankings["age"]}
    far, near = by_target[truth[0].folder.name], by_target[truth[3].folder.name]
    assert far is audit.rankings["age"][0]
    assert far.contradicted and not near.contradicted
    assert far.doubt > 0.8 > 0.3 > near.doubt
    assert far.label_name == "<30 (20)"
    assert "agrees" not in far.why
    assert "a labelled age of 29 agrees with that to 88%" in near.why
    [fix] = all_chosen(audit)
    middle = sorted(one.age for one in read_profiles(root) if one.age_group is AgeLabels.MIDDLE)
    assert (fix.target, fix.field, fix.old) == (truth[0].folder.name, "age", "20")
    assert int(fix.new) == middle[(len(middle) - 1) // 2]
    assert "median age of that group" in fix.why


def test_wrong_ages_get_the_years_that_were_answered(data_dir: DataDir, tmp_path: Path) -> None:
    labelled = [18, 25, 28, 31, 38, 50, 55, 62, 66, 75] * 4
    root = data_dir(len(labelled), ages=labelled)
    people = read_profiles(root)
    truth = labelled.copy()
    truth[0], truth[5] = 47, 33  # labelled 18, and labelled 50: of the same group
    years = (0, 10, 20, 30, 40, 45, 60, 70)
    answers = age_answers(np.random.default_rng(0), np.array(truth), shared=2, own=1, years=years)
    groups = np.add.reduceat(answers, [years.index(first) for first in (0, 30, 60)], axis=2)
    own = write_oof(tmp_path / "own.csv", "age", root, people, groups, (), years, answers)
    audit = audit_labels([read_oof(own)])
    first, *others = audit.rankings["age"]
    assert (first.target, first.answer_age) == (people[0].folder.name, 52)  # 45 to 59
    assert "answered 30-59 (about 52) with" in first.why
    [fix] = all_chosen(audit)
    assert (fix.target, fix.new) == (first.target, "52")
    assert "52 is what was answered: put the true age" in fix.why
    # A wrong age of the right group is doubted next, and not contradicted.
    assert others[0].target == people[5].folder.name
    assert not others[0].contradicted

    # Of another training only the groups are known: then of none more.
    plain = write_oof(tmp_path / "plain.csv", "age", root, people, groups)
    both = audit_labels([read_oof(own), read_oof(plain)])
    assert both.cautions["age"] == [
        f"{plain} has no years, so groups alone are judged; maskcls-evaluate --oof writes them, of "
        "networks that learnt them"
    ]
    genders = [np.eye(2)[[one.gender] * len(one.pictures)] for one in people]
    other = write_oof(tmp_path / "gender.csv", "gender", root, people, genders)
    assert audit_labels([read_oof(own), read_oof(other)]).cautions["age"] == []
    coarse = (0, 30, 40, 60)
    halves = np.add.reduceat(answers, [years.index(first) for first in coarse], axis=2)
    third = write_oof(tmp_path / "coarse.csv", "age", root, people, groups, (), coarse, halves)
    assert audit_labels([read_oof(own), read_oof(third)]).cautions["age"] == [
        f"{own} and {third} have ages in different steps, so groups alone are judged"
    ]
    assert audit.cautions["age"] == []
    together = both.rankings["age"]
    alone = audit_labels([read_oof(plain)]).rankings["age"]
    assert {one.answer_age for one in together} == {None}
    assert [one.doubt for one in together] == pytest.approx([one.doubt for one in alone], abs=1e-4)


def test_an_age_at_the_border_is_contradicted_by_years_far_from_it(
    data_dir: DataDir, tmp_path: Path
) -> None:
    root = data_dir(40, ages=[20, 29, 29, 25, 35, 45, 55, 41, 62, 75] * 4)
    people = read_profiles(root)
    truth = [person.age for person in people]
    truth[1], truth[2] = 50, 32
    years = (0, 20, 28, 30, 35, 40, 60)
    answers = age_answers(np.random.default_rng(0), np.array(truth), shared=1, own=1, years=years)
    groups = np.add.reduceat(answers, [years.index(first) for first in (0, 30, 60)], axis=2)
    file = write_oof(tmp_path / "oof.csv", "age", root, people, groups, (), years, answers)
    found = {one.target: one for one in audit_labels([read_oof(file)]).rankings["age"]}
    far, near = (found[people[place].folder.name] for place in (1, 2))
    assert far.contradicted and "agrees" not in far.why
    assert not near.contradicted and "agrees with that to 88%" in near.why
    assert far.doubt > 0.9 > 0.5 > near.doubt


def test_one_age_for_a_group_stays_its_age(data_dir: DataDir, tmp_path: Path) -> None:
    """A guess of 67 would tell the next audit that the ages of this group tell years."""
    root = data_dir(40, ages=[20, 25, 40, 60] * 10)
    people = read_profiles(root)
    truth = [person.age + 7 * (person.age == 60) for person in people]
    truth[0] = 67
    years = (0, 30, 60, 65, 70)
    answers = age_answers(np.random.default_rng(0), np.array(truth), shared=1, own=1, years=years)
    groups = np.add.reduceat(answers, [0, 1, 2], axis=2)
    file = write_oof(tmp_path / "oof.csv", "age", root, people, groups, (), years, answers)
    audit = audit_labels([read_oof(file)])
    [fix] = all_chosen(audit)
    assert audit.rankings["age"][0].answer_age == 67
    assert (fix.target, fix.old, fix.new) == (people[0].folder.name, "20", "60")


def test_earlier_corrections_stay_or_are_taken_back(root: Path, tmp_path: Path) -> None:
    truth = read_profiles(root)
    names = [one.folder.name for one in truth]
    wrongly = Fix(names[4], "gender", *_genders(truth[4]), "a mistake")
    rightly = Fix(names[5], "gender", *_genders(truth[5]), "seen")
    race = Fix(names[6], "race", "Asian", "White", "seen")
    truth[5], truth[9] = other_gender(truth[5]), other_gender(truth[9])
    audit = audit_of(tmp_path, root, "gender", truth, [wrongly, rightly, race])
    first, second = audit.rankings["gender"][:2]
    assert {first.target, second.target} == {names[4], names[9]}
    found = {one.target: one for one in (first, second)}
    assert "the label is an earlier correction" in found[names[4]].why
    assert "earlier" not in found[names[9]].why
    proposed = all_chosen(audit)
    assert [fix.target for fix in proposed] == [names[5], names[6], names[9]]
    assert proposed[:2] == [rightly, race]
    fixed = apply_fixes(read_profiles(root), proposed)
    assert [one.gender for one in fixed] == [one.gender for one in truth]


def _genders(person: Profile) -> tuple[str, str]:
    return person.gender.name.lower(), other_gender(person).gender.name.lower()


def test_several_files_are_taken_together(root: Path, tmp_path: Path) -> None:
    truth = read_profiles(root)
    truth[3] = other_gender(truth[3])
    files = []
    for number, task in enumerate(("mask_gender", "age", "gender")):
        given = answers(np.random.default_rng(number), TASKS[task], truth)
        files.append(write_oof(tmp_path / f"{task}.csv", task, root, read_profiles(root), given))
    audit = audit_labels([read_oof(file) for file in files])
    assert list(audit.rankings) == ["mask", "gender", "age"]
    assert audit.data_dirs == (root,)
    first = audit.rankings["gender"][0]
    assert first.target == truth[3].folder.name
    assert len(first.pictures) == 7  # each answered twice
    assert len(audit.rankings["gender"]) == 30


def audit_of_genders(
    folder: Path, people: Sequence[Profile], female: Sequence[float]
) -> tuple[list[str], list[str]]:
    """Cautions, and who is contradicted. `female`: what is answered about each of the people."""
    given = [
        np.full((len(one.pictures), 2), (1 - share, share))
        for one, share in zip(people, female, strict=True)
    ]
    root = people[0].folder.parents[1]
    audit = audit_labels([read_oof(write_oof(folder / "oof.csv", "gender", root, people, given))])
    text = Page(render(audit, {}, None)).text
    assert all(f"Caution: {caution}." in text for caution in audit.cautions["gender"])
    wrong = [one.target for one in audit.rankings["gender"] if one.contradicted]
    return list(audit.cautions["gender"]), wrong


def some_of_each_gender(root: Path, women: int, men: int) -> list[Profile]:
    people = read_profiles(root)
    of_gender = {gender: [one for one in people if one.gender == gender] for gender in GenderLabels}
    return of_gender[GenderLabels.FEMALE][:women] + of_gender[GenderLabels.MALE][:men]


@pytest.mark.parametrize(("women", "men"), [(10, 10), (12, 4)])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_networks_that_cannot_tell_are_no_judges(
    root: Path, tmp_path: Path, women: int, men: int, share: float
) -> None:
    people = some_of_each_gender(root, women, men)
    [caution], _ = audit_of_genders(tmp_path, people, [share] * len(people))
    assert "are what is answered, and 50% would be by chance" in caution


def test_a_rare_label_that_is_mostly_wrong_is_no_reason_for_caution(
    root: Path, tmp_path: Path
) -> None:
    people = some_of_each_gender(root, 14, 5)
    truth = [0.99] * 14 + [0.01] * 2 + [0.99] * 3  # three of the men are women
    cautions, wrong = audit_of_genders(tmp_path, people, truth)
    assert cautions == []
    assert sorted(wrong) == sorted(one.folder.name for one in people[-3:])


def test_people_of_one_class_are_no_reason_for_caution(root: Path, tmp_path: Path) -> None:
    cautions, _ = audit_of_genders(tmp_path, some_of_each_gender(root, 9, 0), [0.9] * 9)
    assert cautions == []


def test_two_data_folders(data_dir: DataDir, tmp_path: Path) -> None:
    roots = [data_dir(12), data_dir(12, name="more", first=13)]
    truth = [read_profiles(root) for root in roots]
    truth[1][2] = other_gender(truth[1][2])
    files = [
        write_oof(
            root.with_suffix(".csv"),
            "gender",
            root,
            read_profiles(root),
            answers(np.random.default_rng(0), TASKS["gender"], people),
        )
        for root, people in zip(roots, truth, strict=True)
    ]
    audit = audit_labels([read_oof(file) for file in files])
    assert len(audit.rankings["gender"]) == 24
    fixes = all_chosen(audit)
    assert [fix.target for fix in fixes] == [truth[1][2].folder.name]
    both = [one for root in roots for one in read_profiles(root)]
    assert apply_fixes(both, fixes) == truth[0] + truth[1]


def test_a_person_with_two_labels_is_ranked_and_not_corrected(
    data_dir: DataDir, tmp_path: Path
) -> None:
    roots = [data_dir(12), data_dir(12, name="more")]
    table = roots[1] / "train.csv"
    text = table.read_text("utf-8")
    table.write_text(text.replace("000001,male", "000001,female", 1), "utf-8")
    files = []
    for root in roots:
        people = read_profiles(roots[0])  # by whose labels all are answered
        given = answers(np.random.default_rng(0), TASKS["gender"], people)
        files.append(
            write_oof(root.with_suffix(".csv"), "gender", root, read_profiles(root), given)
        )
    audit = audit_labels([read_oof(file) for file in files])
    assert len(audit.rankings["gender"]) == 13
    assert audit.rankings["gender"][0].profile.gender is GenderLabels.FEMALE
    assert audit.rankings["gender"][0].contradicted
    assert all_chosen(audit) == []


def test_a_person_with_two_ages_of_one_group_is_not_corrected(
    data_dir: DataDir, tmp_path: Path
) -> None:
    """A table of fixes names the age that it corrects, and there is but one table."""
    roots = [data_dir(12), data_dir(12, name="more")]
    table = roots[1] / "train.csv"
    text = table.read_text("utf-8")
    person = next(one for one in read_profiles(roots[0]) if one.age_group is AgeLabels.YOUNG)
    row = f"{person.id},{person.gender.name.lower()},{person.race},{person.age},"
    assert row in text
    older = person.age + 1 if person.age < 29 else 28
    table.write_text(text.replace(row, row.replace(f",{person.age},", f",{older},")), "utf-8")
    truth = [
        replace(one, age=65) if one.person == person.person else one
        for one in read_profiles(roots[0])
    ]
    files = [
        write_oof(
            root.with_suffix(".csv"),
            "age",
            root,
            read_profiles(root),
            answers(np.random.default_rng(0), TASKS["age"], truth),
        )
        for root in roots
    ]
    audit = audit_labels([read_oof(file) for file in files])
    doubted = [one for one in audit.rankings["age"] if one.target == person.folder.name]
    assert {one.profile.age for one in doubted} == {person.age, older}
    assert propose(audit, doubted) == []
    alone = audit_labels([read_oof(files[0])])
    assert propose(alone, [one for one in doubted if one.profile.age == person.age])


# --- what does not fit ---------------------------------------------------------------------------


def test_a_label_that_has_changed_since(root: Path, tmp_path: Path) -> None:
    people = read_profiles(root)
    given = answers(np.random.default_rng(0), TASKS["gender"], people)
    then = [*people[:2], other_gender(people[2]), *people[3:]]
    file = write_oof(tmp_path / "oof.csv", "gender", root, then, given)
    with pytest.raises(DataError, match=r"oof\.csv, line 16: .*'female' in the data") as caught:
        audit_labels([read_oof(file)])
    assert people[2].folder.name in str(caught.value)


def test_a_picture_that_is_gone(root: Path, tmp_path: Path) -> None:
    people = read_profiles(root)
    given = answers(np.random.default_rng(0), TASKS["gender"], people)
    file = write_oof(tmp_path / "oof.csv", "gender", root, people, given)
    people[0].pictures[0].path.unlink()
    with pytest.raises(DataError, match=r"line 2: no picture '000001_.*/incorrect_mask\.jpg'"):
        audit_labels([read_oof(file)])


def test_a_data_folder_that_is_gone(root: Path, tmp_path: Path) -> None:
    people = read_profiles(root)
    given = answers(np.random.default_rng(0), TASKS["gender"], people)
    file = write_oof(tmp_path / "oof.csv", "gender", Path("elsewhere"), people, given)
    with pytest.raises(DataError, match="no such data folder: elsewhere; it is a data folder of"):
        audit_labels([read_oof(file)])


def test_trainings_with_different_corrections(root: Path, tmp_path: Path) -> None:
    people = read_profiles(root)
    fix = Fix(people[0].folder.name, "race", "Asian", "White", "")
    files = []
    for name, fixes in (("a.csv", []), ("b.csv", [fix])):
        given = answers(np.random.default_rng(0), TASKS["gender"], people)
        files.append(write_oof(tmp_path / name, "gender", root, people, given, fixes))
    with pytest.raises(DataError, match=r"a\.csv and .*b\.csv: of trainings with different"):
        audit_labels([read_oof(file) for file in files])
    with pytest.raises(DataError, match="no out-of-fold predictions"):
        audit_labels([])


# --- what is written -----------------------------------------------------------------------------


@pytest.fixture
def audit(root: Path, tmp_path: Path) -> Audit:
    """One wrong gender, one swap, one wrong age."""
    truth = read_profiles(root)
    truth[3] = other_gender(truth[3])
    truth[7] = swapped(truth[7])
    truth[11] = replace(truth[11], age={22: 63, 45: 22, 63: 22}[truth[11].age])
    return audit_of(tmp_path, root, "multi", truth)


def test_the_ranking_holds_everything(audit: Audit, tmp_path: Path) -> None:
    write_ranking(audit, tmp_path / "ranking.csv")
    with (tmp_path / "ranking.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30 * 7 + 30 + 30
    for name, ranking in audit.rankings.items():
        own = [row for row in rows if row["attribute"] == name]
        assert [row["target"] for row in own] == [one.target for one in ranking]
        assert [int(row["rank"]) for row in own] == list(range(1, len(own) + 1))
        doubts = [float(row["doubt"]) for row in own]
        assert doubts == sorted(doubts, reverse=True)
        assert sum(int(row["contradicted"]) for row in own) == {"mask": 2}.get(name, 1)
    [first] = [row for row in rows if (row["attribute"], row["rank"]) == ("gender", "1")]
    assert float(first["p_answer"]) > 0.9 > 0.1 > float(first["p_label"])
    assert first["pictures"] == "7"


def test_the_page(audit: Audit, root: Path) -> None:
    shown = {name: chosen(ranking, 10) for name, ranking in audit.rankings.items()}
    paths = [path for each in shown.values() for one in each for path, _ in one.pictures]
    thumbnails = read_thumbnails(paths)
    assert {image.shape for image in thumbnails.values()} == {(120, 90, 3)}
    text = render(audit, shown, thumbnails)
    page = Page(text)
    assert page.headings == ["Mask", "Gender", "Age"]
    assert len(page.named("img")) == 2 + 7 + 7
    assert text.count('<div class="faces">') == 3  # a swap is one card
    assert all(image["alt"] for image in page.named("img"))
    assert all(str(image["src"]).startswith("data:image/jpeg") for image in page.named("img"))
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://", re.sub(r"base64,[^\"]*", "", text))
    assert "Privacy" in page.text
    for each in shown.values():
        for one in each:
            assert one.target in page.text
            assert f"{one.label_name} → {one.answer_name}" in page.text
    assert "2 of 210 labels of pictures are contradicted. 2 of them follow" in page.text
    assert "1 of 30 labels of people are contradicted" in page.text


def test_the_page_without_pictures_or_with_one_that_is_broken(audit: Audit, tmp_path: Path) -> None:
    shown = {name: chosen(ranking, 10) for name, ranking in audit.rankings.items()}
    write_gallery(audit, shown, tmp_path / "audit.html", pictures=False)
    page = Page((tmp_path / "audit.html").read_text("utf-8"))
    assert not page.named("img")
    assert "holds pictures of people" not in page.text
    assert "Privacy: this file holds the names of people's folders" in page.text
    assert shown["gender"][0].target in page.text
    path, _ = shown["gender"][0].pictures[0]
    path.write_bytes(b"no picture")
    write_gallery(audit, shown, tmp_path / "audit.html")
    page = Page((tmp_path / "audit.html").read_text("utf-8"))
    assert len(page.named("img")) == 2 + 6 + 7
    assert page.text.count("cannot be read") == 1


def test_hostile_names(data_dir: DataDir, tmp_path: Path) -> None:
    root = data_dir(12, table=False)
    hostile = "000099_male_<script>alert(1)<&'\"김_45"
    first = read_profiles(root)[0].folder
    first.rename(first.with_name(hostile))
    truth = [
        other_gender(one) if one.folder.name == hostile else one for one in read_profiles(root)
    ]
    audit = audit_of(tmp_path, root, "gender", truth)
    shown = {"gender": chosen(audit.rankings["gender"], 5)}
    text = render(audit, shown, None)
    assert "<script" not in text
    assert hostile in Page(text).text
    fixes = all_chosen(audit)
    write_fixes(tmp_path / "fixes.csv", fixes)
    assert read_fixes(tmp_path / "fixes.csv") == fixes
    assert fixes[0].target == hostile


def test_nothing_is_wider_than_the_page(audit: Audit, tmp_path: Path) -> None:
    shown = {name: chosen(ranking, 10) for name, ranking in audit.rankings.items()}
    paths = [path for each in shown.values() for one in each for path, _ in one.pictures]
    for whole, visible in widths_in_a_browser(
        render(audit, shown, read_thumbnails(paths)), tmp_path
    ):
        assert whole <= visible
