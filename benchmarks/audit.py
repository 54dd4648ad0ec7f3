"""How many labels that were made wrong on purpose an audit finds.

    python benchmarks/audit.py
    python benchmarks/audit.py --data-dir data/train --folds 5 --json audit.json
    python benchmarks/audit.py --data-dir data/train --height 64 --width 48 --epochs 6 --folds 3

A fixes table gives 5 % of the people another gender, and 5 % another age group. Networks are
trained in folds on these labels, from scratch; each answers for the people it has not seen; the
audit ranks all people by these answers. Asked is how many of the people with a wrong label are in
the first 10 % of the ranking. The pictures are not changed.

A wrong age is that of somebody else, drawn from one of the other two groups, each group with the
same chance. It may well be a year from the true one: 29 for 31 is in another group.

How to read it: benchmarks/README.md. All options: python benchmarks/audit.py --help
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from benchmarks.shared import processor, require_positive, write_figures
from maskcls.commands._run import guarded
from maskcls.errors import ConfigError
from maskcls.labels import AGE_BOUNDS, ATTRIBUTES
from maskcls.runtime.engines import usable_cores

if TYPE_CHECKING:
    from maskcls.data.fixes import Fix
    from maskcls.data.profiles import Profile
    from maskcls.evaluation.audit import Audit, Finding

TASK_OF = {"gender": "mask_gender", "age": "age"}
"""Attribute whose labels are made wrong → the network that answers it. `age` starts from what
`mask_gender` has learnt in the same fold, as with `--task all`."""
FIRST = 0.1  # the share of the ranking that counts as found


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Measure how many labels that were made wrong on purpose an audit finds.",
        epilog="example:\n  python benchmarks/audit.py --data-dir data/train --folds 5",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        nargs="+",
        default=[Path("runs/demo/sample/train")],
        metavar="DIR",
        help="default: runs/demo/sample/train",
    )
    parser.add_argument("--attributes", nargs="+", default=list(TASK_OF), choices=TASK_OF)
    parser.add_argument(
        "--share", type=float, default=0.05, metavar="X", help="wrong labels; default: 0.05"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--folds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--model", metavar="NAME", help="default: the preset's")
    parser.add_argument("--height", type=int, metavar="N", help="default: the preset's")
    parser.add_argument("--width", type=int, metavar="N", help="default: the preset's")
    parser.add_argument("--epochs", type=int, metavar="N", help="default: the preset's")
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: the preset's")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="leave runs, predictions and rankings there"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    args = build_parser().parse_args(argv)
    require_positive(args, "folds", "height", "width", "epochs", "batch_size")
    if not 0 < args.share <= FIRST:
        raise ConfigError(
            f"--share {args.share}: must be above 0 and at most {FIRST}: more do not fit into the "
            f"first {FIRST:.0%} of a ranking"
        )
    if args.keep is not None and args.keep.exists() and any(args.keep.iterdir()):
        raise ConfigError(f"--keep {args.keep}: is not empty; name another folder")
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(args, args.keep or Path(scratch))
    print(format_table(figures))
    write_figures(args.json, figures)
    return 0


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures, as plain values; everything else is left in `folder`."""
    from maskcls.data.fixes import write_fixes
    from maskcls.data.profiles import read_all_profiles

    began = time.perf_counter()
    profiles = read_all_profiles(args.data_dir)
    wrong = [
        fix
        for attribute in args.attributes
        for fix in make_wrong(profiles, attribute, args.share, args.seed)
    ]
    fixes = folder / "wrong.csv"
    write_fixes(fixes, wrong)
    groups: dict[str, Path] = {}
    for task in TASK_OF.values():
        if task in [TASK_OF[name] for name in args.attributes]:
            groups[task] = train_folds(args, folder, task, fixes, groups.get("mask_gender"))
    found = {
        attribute: score(groups[TASK_OF[attribute]], attribute, wrong, folder)
        for attribute in args.attributes
    }
    return {
        "data": [folder.name for folder in args.data_dir],
        "share": args.share,
        "seed": args.seed,
        "folds": args.folds,
        "model": args.model,
        "height": args.height,
        "width": args.width,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "age_starts_from": "mask_gender" if "mask_gender" in groups else "scratch",
        "seconds": time.perf_counter() - began,
        "cores": usable_cores(),
        "processor": processor(),
        "python": platform.python_version(),
        "attributes": found,
    }


def make_wrong(profiles: Sequence[Profile], attribute: str, share: float, seed: int) -> list[Fix]:
    """A wrong label for so large a share of the people; the same for the same seed."""
    import numpy as np

    from maskcls.data.fixes import Fix
    from maskcls.labels import GenderLabels

    people = {profile.person: profile for profile in profiles}
    rng = np.random.default_rng([seed, list(ATTRIBUTES).index(attribute)])
    count = max(1, round(share * len(people)))
    fixes = []
    for person in sorted(rng.choice(sorted(people), count, replace=False).tolist()):
        own = people[person]
        if attribute == "gender":
            old, new = own.gender.name.lower(), GenderLabels(1 - own.gender).name.lower()
        else:
            groups: dict[int, list[int]] = {}
            for one in people.values():
                groups.setdefault(int(one.age_group), []).append(one.age)
            others = sorted(set(groups) - {int(own.age_group)})
            if not others:
                raise ConfigError("all people are of one age group: there is no wrong one to give")
            drawn = groups[int(rng.choice(others))]
            old, new = str(own.age), str(rng.choice(sorted(drawn)))
        fixes.append(Fix(own.folder.name, attribute, old, new, "made wrong"))
    return fixes


def train_folds(
    args: argparse.Namespace, folder: Path, task: str, fixes: Path, before: Path | None
) -> Path:
    """A group of folds, with what each answers for its people. `before`: the group from which each
    fold starts."""
    from maskcls.config import resolve
    from maskcls.devices import resolve_device
    from maskcls.evaluation.out_of_fold import answer_out_of_fold, write_out_of_fold
    from maskcls.training.folds import start_group, train_group

    given = {
        name: getattr(args, name)
        for name in ("model", "height", "width", "epochs", "batch_size")
        if getattr(args, name) is not None
    }
    flags = {
        **given,
        "data_dir": tuple(str(one) for one in args.data_dir),
        "model_dir": str(folder / "runs"),
        "name": "folds",
        "fixes": str(fixes),
        "folds": args.folds,
        "seed": args.seed,
        "weights": "none" if before is None else str(before),
    }
    group = start_group(resolve(task, "scratch" if before is None else "branch", flags=flags))
    train_group(group)
    write_out_of_fold(answer_out_of_fold(group, resolve_device("auto")))
    return group


def score(group: Path, attribute: str, wrong: Sequence[Fix], folder: Path) -> dict[str, Any]:
    """How many of the wrong labels the audit finds."""
    from maskcls.evaluation.audit import audit_labels, chosen, write_ranking
    from maskcls.evaluation.oof import read_oof

    table = read_oof(group)
    audit = audit_labels([table])
    write_ranking(audit, folder / f"ranking_{attribute}.csv")
    ranking = audit.rankings[attribute]
    targets = {fix.target for fix in wrong if fix.field == attribute}
    first = {finding.target for finding in ranking[: math.ceil(FIRST * len(ranking))]}
    proposed = {finding.target for finding in chosen(ranking, 1.0)}
    return {
        "people": len(ranking),
        "wrong": len(targets),
        "found": len(targets & first),
        "recall": len(targets & first) / len(targets),
        "blind_recall": blind_recall(ranking, attribute, targets, table.years),
        "proposed": len(proposed),
        "proposed_wrong": len(targets & proposed),
        "accuracy": accuracy(audit, attribute, wrong),
    }


def blind_recall(
    ranking: Sequence[Finding], attribute: str, targets: Collection[str], years: Sequence[int]
) -> float:
    """The recall of answers that say nothing: for everybody the shares of the labels. Who has a
    rare label comes first then, and more of those are wrong. `years`: the first of each step in
    which ages are answered, none where only groups are."""
    import numpy as np

    from maskcls.evaluation.label_errors import age_agreement

    if attribute == "age":
        years = years or (0, *AGE_BOUNDS)
        ages = np.array([finding.profile.age for finding in ranking])
        labels = np.searchsorted(years, ages, side="right") - 1
        agreement = age_agreement(ages, years)
    else:
        labels = np.array([finding.label for finding in ranking])
        agreement = np.eye(len(ATTRIBUTES[attribute]))[labels]
    shares = np.bincount(labels, minlength=agreement.shape[1]) / len(labels)
    doubt = (1 - agreement @ shares).round(9)
    wrong = np.array([finding.target in targets for finding in ranking])
    count = math.ceil(FIRST * len(labels))
    last = np.sort(doubt)[-count]  # those with the same doubt are in no order
    sure, tied = doubt > last, doubt == last
    found = wrong[sure].sum() + (count - sure.sum()) * wrong[tied].mean()
    return float(found / len(targets))


def accuracy(audit: Audit, attribute: str, wrong: Sequence[Fix]) -> float:
    """Share of the people that are answered with their label before it was made wrong."""
    from maskcls.data.fixes import parse_label
    from maskcls.labels import AgeLabels

    before = {
        fix.target: parse_label(attribute, fix.old) for fix in wrong if fix.field == attribute
    }
    right = 0
    for finding in audit.rankings[attribute]:
        given = finding.label_probability >= finding.answer_probability
        answer = finding.label if given else finding.answer
        truth = before.get(finding.target, finding.label)
        if attribute == "age" and finding.target in before:
            truth = AgeLabels.from_number(truth)
        right += answer == truth
    return right / len(audit.rankings[attribute])


def format_table(figures: dict[str, Any]) -> str:
    lines = [
        f"{figures['share']:.0%} of the labels made wrong, {figures['folds']} folds, "
        f"{figures['seconds']:.0f} s; {figures['cores']} cores, {figures['processor']}",
        "",
        f"| labels | people | made wrong | in the first {FIRST:.0%} | recall | of no answers "
        "| proposed | of them made wrong | accuracy |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in figures["attributes"].items():
        lines.append(
            f"| {name} | {row['people']} | {row['wrong']} | {row['found']} | {row['recall']:.2f} "
            f"| {row['blind_recall']:.2f} | {row['proposed']} | {row['proposed_wrong']} "
            f"| {row['accuracy']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
