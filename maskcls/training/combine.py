"""Trained networks of one task made into one: an ensemble, which asks them all, or a soup, which
has the average of their weights and costs no more than one of them (Wortsman et al. 2022,
arXiv:2203.05482).

Either is a run folder with `best.pt` and `split.csv`, as training leaves one: it labels, is scored
and is exported like any other.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from maskcls.checkpoints import save_checkpoint
from maskcls.classifier import BEST
from maskcls.data.profiles import Profile
from maskcls.data.runs import data_folders, labelled_pictures, people_of_run, split_of_run
from maskcls.data.splits import SPLIT_COLUMNS, changed_people, encode_table, people_of, split_hash
from maskcls.data.targets import at_border
from maskcls.errors import CheckpointError, DataError
from maskcls.evaluation.scoring import ClassScores, confusion_matrix, scores_from_confusion
from maskcls.files import write_atomic, write_rows
from maskcls.manifest import ENSEMBLE, GREEDY_SOUP, Manifest, is_greedy, networks_within
from maskcls.models import Answer, Ensemble, Trained, model_from_manifest, open_trained
from maskcls.provenance import fingerprint, names_all, seen_by_all
from maskcls.runtime import Source
from maskcls.runtime.labelling import decoded_batches
from maskcls.training.calibration import calibrate, describe
from maskcls.training.paths import increment_path

BATCH = 32  # pictures at once
COLLAPSED = 0.9
"""Of the worst network's score on training pictures. A good soup may have a little less there than
networks that know these by heart, and more elsewhere (Izmailov et al. 2018, arXiv:1803.05407); one
of networks that began apart has next to nothing."""
SAMPLE = 1024  # pictures that tell whether a soup is one


@dataclass(frozen=True)
class Combined:
    """What came of it."""

    folder: Path
    members: tuple[Path, ...]  # the checkpoints that are in it, the best first where it is greedy
    scores: ClassScores | None  # on the people whom none has trained on; None: there are none
    calibrated: bool  # members, by some of those people, and so scored
    greedy: bool  # they chose who is in it, or in a member of it


@dataclass(frozen=True, eq=False)
class _Pictures:
    """Pictures as a network takes them, and what they show."""

    pixels: np.ndarray  # uint8 (N, H, W, 3)
    labels: np.ndarray  # (N,) classes of the task
    people: Sequence[str]  # (N,) whose
    ages: np.ndarray  # (N,) years


def combine_runs(
    checkpoints: Sequence[Path],
    way: str,
    model_dir: Path,
    name: str,
    device: torch.device,
    say: Callable[[str], None] = print,
) -> Combined:
    """Makes one network of several, in MODEL_DIR/<task>/<name>.

    `way`: one of `maskcls.manifest.COMBINATIONS`. A greedy soup takes the networks in the order of
    their macro F1 on the people whom none of them has trained on, and leaves out each that would
    lower it. Batch statistics of a soup are those of the training pictures, anew; so is its
    calibration, where its networks were trained with one, of the people whom none has trained on.
    Its score is without it, as that of a training is.

    Raises:
        CheckpointError: fewer than two; networks of different tasks or inputs; for a soup, of
            different kinds.
        DataError: their data are gone, or differ; nobody to choose a greedy soup on.
    """
    members = [open_trained(path) for path in checkpoints]
    _require_alike(members, soup=way != ENSEMBLE)
    first = members[0]
    known = frozenset[int]().union(*(member.seen or () for member in members))
    for member in members:
        if not names_all(member.seen):
            say(
                f"warning: {member.path}: does not say whom all it, or what it started from, was "
                "trained on; if people who score here are among them, the score flatters"
            )
    table = _common_split(members, known)
    everybody = [
        person
        for member in members
        for person in people_of_run(member.path, member.manifest, "train", "val")
    ]
    people = {side: _named(everybody, people_of(table, side)) for side in ("train", "val")}
    for side, found in people.items():
        if changed := changed_people(table, side, found):
            raise DataError(
                f"{first.path} and the others: trained on {changed[0]} in different folders; give "
                "them one place with maskcls-train --resume RUN --data-dir DIR"
            )
    unseen = _load(people["val"], first.manifest, say, known) if people["val"] else None
    training = None
    if way == ENSEMBLE:
        chosen, model = members, _ensemble(members)
    else:
        training = _load(people["train"], first.manifest, say)
        assert training is not None  # nothing is left out of it

        def average(some: Sequence[Trained]) -> nn.Module:
            return _average(some, training, device)

        if way == "soup":
            chosen, model = members, average(members)
            if unseen is None:
                _warn_of_collapse(members, model, training, device, say)
        elif unseen is None:
            raise DataError(
                "nobody validated one of these runs and trained none of them, so there is nobody "
                "to choose a greedy soup on; take --how soup, or runs of one split"
            )
        else:
            chosen, model = _greedy(members, average, unseen, device, say)
    manifest = _manifest(chosen, way, table)
    scores = None if unseen is None else _score(Answer(model, manifest), unseen, manifest, device)
    metrics = {} if scores is None else {"macro_f1": scores.macro_f1, "accuracy": scores.accuracy}
    if training is not None:
        manifest, fitted = _calibrate(manifest, chosen, model, unseen, training, device, say)
        metrics |= fitted
        if fitted:
            say(describe(replace(manifest, metrics=metrics)))
    folder = increment_path(model_dir / first.manifest.task / name)
    write_atomic(folder / "split.csv", encode_table(table))
    content: dict[str, Any] = {
        "manifest": replace(manifest, metrics=metrics).to_json(),
        "model": model.cpu().state_dict(),
    }
    # Of a greedy soup, too: its batch statistics are of them all.
    if (seen := seen_by_all(member.seen for member in members)) is not None:
        content["seen"] = torch.tensor(sorted(seen), dtype=torch.int64)
    save_checkpoint(content, folder / BEST)
    calibrated = way == ENSEMBLE and any(
        one.calibration is not None for one in networks_within(manifest)
    )
    paths = tuple(member.path for member in chosen)
    return Combined(folder, paths, scores, calibrated, is_greedy(manifest))


def _require_alike(members: Sequence[Trained], *, soup: bool) -> None:
    """
    Raises:
        CheckpointError: they cannot be made one.
    """
    if len({member.sha256 for member in members}) < 2:
        raise CheckpointError("give two or more runs, or a group of folds; one is what it is")

    def differ(other: Trained, what: str, way_out: str = "") -> CheckpointError:
        return CheckpointError(f"{members[0].path} and {other.path}: differ in {what}{way_out}")

    first = members[0].manifest
    for member in members[1:]:
        other = member.manifest
        if other.task != first.task:
            raise differ(member, f"task, {first.task} and {other.task}")
        if other.preprocess != first.preprocess:
            raise differ(member, "what pictures become before the network, such as their size")
        if other.fixes != first.fixes:
            raise differ(member, "the corrections of their labels")
        alike = (other.model, other.model_args, other.tta) == (
            *(first.model, first.model_args),
            first.tta,
        )
        if soup and (not alike or first.model == ENSEMBLE):
            raise differ(member, "model, its arguments or tta", "; take --how ensemble")


def _common_split(members: Sequence[Trained], known: frozenset[int]) -> str:
    """The text of a `split.csv`: whom one of them, or what it started from, has trained on, the
    `known`, is on that side; whoever validated some and trained none validates."""
    rows: dict[str, dict[str, str]] = {}
    for member in members:
        text = split_of_run(member.path, member.manifest)
        for row in csv.DictReader(io.StringIO(text, newline="")):
            first = rows.setdefault(row["person"], row)
            if {**first, "side": ""} != {**row, "side": ""}:
                raise DataError(
                    f"{members[0].path} and {member.path}: trained with different pictures or "
                    f"labels of {row['person']}"
                )
            if row["side"] == "train" or fingerprint(row["person"]) in known:
                first["side"] = "train"
    table = io.StringIO()
    ordered = (tuple(rows[person][name] for name in SPLIT_COLUMNS) for person in sorted(rows))
    write_rows(table, [SPLIT_COLUMNS, *ordered])
    return table.getvalue()


def _named(people: Sequence[Profile], names: set[str]) -> list[Profile]:
    """Those of these names; of each folder, which runs tell in several ways, one."""
    found = {person.folder.resolve(): person for person in people if person.person in names}
    return list(found.values())


def _load(
    people: Sequence[Profile],
    manifest: Manifest,
    say: Callable[[str], None],
    known: frozenset[int] = frozenset(),
) -> _Pictures | None:
    """Their pictures, without those that cannot be read and those that are `known`: in somebody
    else's folder, too, whom a network has trained on. None if all of them are.

    Raises:
        DataError: none can be read.
    """
    listed = dict(labelled_pictures(people))
    sources = [Source(str(path), path) for path in listed]
    owners = {picture.path: one for one in people for picture in one.pictures}
    pixels, labels, whose = [], [], []
    unreadable = 0
    with tqdm(total=len(sources), desc="pictures", unit="img", disable=None, leave=False) as bar:
        for batch in decoded_batches([manifest.preprocess], sources, BATCH, 2, known):
            for picture in batch:
                unreadable += bool(picture.error)
                if not picture.error and not picture.seen:
                    pixels.append(picture.pixels[0])
                    labels.append(listed[picture.source.path])
                    whose.append(owners[picture.source.path])
            bar.update(len(batch))
    if unreadable == len(sources):
        raise DataError(f"none of {len(sources)} pictures of these runs can be read")
    if unreadable:
        say(f"warning: {unreadable} unreadable pictures are skipped")
    if copies := len(sources) - unreadable - len(pixels):
        say(
            f"warning: {copies} pictures of people whom none has trained on are skipped: they are "
            "in somebody else's folder, too; maskcls-data check names them"
        )
    if not pixels:
        return None
    return _Pictures(
        np.stack(pixels),
        manifest.get_task().from_multi(np.array(labels)),
        [one.person for one in whose],
        np.array([one.age for one in whose]),
    )


def _ensemble(members: Sequence[Trained]) -> nn.Module:
    return Ensemble([Answer(member.model, member.manifest) for member in members]).eval()


def _average(members: Sequence[Trained], training: _Pictures, device: torch.device) -> nn.Module:
    """The mean of their weights, in evaluation mode on `device`."""
    states = [member.model.state_dict() for member in members]
    mean = {
        key: torch.stack([state[key].double() for state in states]).mean(dim=0).to(value.dtype)
        if value.is_floating_point()
        else value
        for key, value in states[0].items()
    }
    model = model_from_manifest(members[0].manifest)
    model.load_state_dict(mean)
    model.to(device)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # of dropout, in training mode
        update_bn(_batches(training, members[0].manifest), model, device)
    return model.eval()


def _batches(pictures: _Pictures, manifest: Manifest) -> Iterator[Tensor]:
    """Normalised float32 (N, 3, H, W), in the order of a seed: the last batch is as large as the
    others, or statistics of a few pictures would count as much."""
    order = np.random.default_rng(0).permutation(len(pictures.pixels))
    count = max(1, len(order) // BATCH)
    for rows in np.array_split(order, count):
        yield torch.from_numpy(manifest.preprocess.normalise(pictures.pixels[rows]))


def _greedy(
    members: Sequence[Trained],
    average: Callable[[Sequence[Trained]], nn.Module],
    unseen: _Pictures,
    device: torch.device,
    say: Callable[[str], None],
) -> tuple[list[Trained], nn.Module]:
    """The best, and each next best that does not lower the score of their average."""

    def score(model: nn.Module) -> float:
        answering = Answer(model, replace(members[0].manifest, calibration=None))
        return _score(answering, unseen, members[0].manifest, device).macro_f1

    alone = {member.path: score(member.model) for member in members}
    ranked = sorted(members, key=lambda member: -alone[member.path])
    chosen, best = ranked[:1], alone[ranked[0].path]
    model = ranked[0].model
    say(f"{ranked[0].path}: macro F1 {best:.4f} alone")
    for member in ranked[1:]:
        mixed = average([*chosen, member])
        found = score(mixed)
        taken = found >= best
        say(
            f"{member.path}: macro F1 {alone[member.path]:.4f} alone, {found:.4f} with it; "
            f"{'taken' if taken else 'left out'}"
        )
        if taken:
            chosen, best, model = [*chosen, member], found, mixed
    return chosen, model


def _warn_of_collapse(
    members: Sequence[Trained],
    soup: nn.Module,
    training: _Pictures,
    device: torch.device,
    say: Callable[[str], None],
) -> None:
    """Where nobody is left to score a soup on, some of the pictures that it was trained on tell
    whether its weights could be averaged at all."""
    rows = np.random.default_rng(0).permutation(len(training.labels))[:SAMPLE]
    whose = [training.people[row] for row in rows]
    some = _Pictures(training.pixels[rows], training.labels[rows], whose, training.ages[rows])
    manifest = replace(members[0].manifest, calibration=None)
    mixed, *alone = (
        _score(Answer(model, manifest), some, manifest, device).macro_f1
        for model in (soup, *(member.model for member in members))
    )
    if mixed < COLLAPSED * min(alone):
        say(
            f"warning: on {len(rows)} pictures of their trainings the soup has a macro F1 "
            f"of {mixed:.4f}, its networks {min(alone):.4f} to {max(alone):.4f}: their weights "
            "cannot be averaged; take --how ensemble"
        )


def _calibrate(
    manifest: Manifest,
    members: Sequence[Trained],
    soup: nn.Module,
    unseen: _Pictures | None,
    training: _Pictures,
    device: torch.device,
    say: Callable[[str], None],
) -> tuple[Manifest, dict[str, float]]:
    """A soup's manifest with a calibration as its networks were trained with, and what that does.
    Theirs are of their own answers."""
    kinds = {member.manifest.config.get("calibration", "none") for member in members}
    [kind] = kinds if len(kinds) == 1 else ["none"]
    if kind != "none" and unseen is not None:
        logits = _logits(Answer(soup, manifest), unseen, manifest, device)
        task, learnt = manifest.get_task(), training.labels
        if "age" in task.attributes and manifest.config.get("border_ages") == "drop":
            learnt = learnt[~at_border(training.ages)]  # as in the trainings
        counts = np.bincount(learnt, minlength=task.num_classes)
        found, metrics = calibrate(kind, logits, unseen.labels, unseen.people, counts)
        return replace(manifest, calibration=found), metrics
    if kinds != {"none"}:
        reason = "nobody is left to fit it on" if kind != "none" else "its networks differ in it"
        say(f"warning: the soup has no calibration: {reason}")
    return replace(manifest, config={**manifest.config, "calibration": "none"}), {}


def _score(
    answering: nn.Module, pictures: _Pictures, manifest: Manifest, device: torch.device
) -> ClassScores:
    answers = _logits(answering, pictures, manifest, device).argmax(axis=1)
    count = manifest.get_task().num_classes
    return scores_from_confusion(confusion_matrix(pictures.labels, answers, count))


@torch.inference_mode()
def _logits(
    answering: nn.Module, pictures: _Pictures, manifest: Manifest, device: torch.device
) -> np.ndarray:
    """float32 (N, C)."""
    answering.to(device).eval()
    answers = []
    for start in range(0, len(pictures.pixels), BATCH):
        batch = manifest.preprocess.normalise(pictures.pixels[start : start + BATCH])
        answers.append(answering(torch.from_numpy(batch).to(device)).cpu().numpy())
    return np.concatenate(answers)


def _manifest(members: Sequence[Trained], way: str, table: str) -> Manifest:
    """What is common to them, and where they are from. Calibrations belong to one network: an
    ensemble's members keep theirs; see `_calibrate` for a soup."""
    first = members[0].manifest
    configs = [member.manifest.config for member in members]
    common = {k: v for k, v in configs[0].items() if all(c.get(k) == v for c in configs)}
    lie = (folder for member in members for folder in data_folders(member.path, member.manifest))
    folders = list(dict.fromkeys(map(str, lie)))
    config: dict[str, Any] = common | {
        "data_dir": folders,
        "tta": "none" if way == ENSEMBLE else first.tta,
        "combined": {
            "how": way,
            "checkpoints": [member.sha256 for member in members],
            "greedy": way == GREEDY_SOUP or any(is_greedy(one.manifest) for one in members),
        },
    }
    arguments: Mapping[str, Any] = first.model_args
    if way == ENSEMBLE:
        arguments = {"members": [member.manifest.to_dict() for member in members]}
    return replace(
        first,
        model=ENSEMBLE if way == ENSEMBLE else first.model,
        model_args=arguments,
        config=config,
        split_hash=split_hash(table),
        calibration=None,
    )
