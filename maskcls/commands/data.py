"""Check a data folder, look for wrong labels, or make a small sample to try the project on.

python cli/data.py check data/train
python cli/data.py check data/train --fixes fixes.csv --json check.json
python cli/data.py audit --oof oof.csv --out audit
python cli/data.py sample --out runs/sample
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maskcls.commands._run import guarded
from maskcls.errors import ConfigError
from maskcls.launch import command_line

if TYPE_CHECKING:
    from maskcls.data.check import CheckReport, Problem

EXAMPLES = 10  # problems of one kind that are shown without --all

TOP = 100  # labels of an attribute that somebody may look through

EPILOG = """\
example:
  maskcls-data sample --out runs/sample
  maskcls-data check runs/sample/train
  maskcls-data check data/train --fixes fixes.csv --json check.json
  maskcls-data audit --oof oof.csv --out audit

All options of one: maskcls-data check --help
"""

CHECK_EPILOG = """\
DIR holds images/{id}_{gender}_{race}_{age}/ with mask1 … mask5, incorrect_mask and normal
(.jpg, .jpeg, .png, …) in each, and a train.csv (id,gender,race,age,path) if the labels are not
those of the folders' names. Nothing in it is changed.

example:
  maskcls-data check data/train
  maskcls-data check data/train --fixes fixes.csv --json check.json
  maskcls-data check data/train data/more

fixes.csv corrects labels without renaming files; training takes the same table:
  target,field,old,new,why
  006359_female_Asian_18,gender,female,male,seen on all seven pictures
  000020_female_Asian_50/normal.jpg,mask,normal,incorrect,swapped with incorrect_mask.jpg

exit code: 0 nothing wrong or only warnings, 1 errors, 2 a wrong option
"""

AUDIT_EPILOG = """\
oof.csv holds the answer to every picture of a network that was trained without its person, as
maskcls-train --folds leaves it (data_dir,path,person,fold,label,answer,p_0,… and age_0,age_5,… of
networks that learnt exact ages), with oof.csv.json beside it. Gender and age are judged by all
pictures of a person together, the mask by the picture; two pictures of a person whose mask labels
look swapped are reported as a pair.

DIR then holds
  audit.html    what is contradicted, with pictures: look at it first
  fixes.csv     corrections for what is on that page; take out the rows of labels that are right
  ranking.csv   every label, the most doubtful first

example:
  maskcls-data audit --oof oof.csv --out audit
  maskcls-data audit --oof mask_gender.csv age.csv --out audit --top 5%
  maskcls-data check data/train --fixes audit/fixes.csv
  maskcls-train --task all --data-dir data/train --fixes audit/fixes.csv

Pictures and train.csv are not changed. If the networks were trained with --fixes, fixes.csv holds
those corrections and the new ones, so that one table does for all.
"""

SAMPLE_EPILOG = """\
The faces are drawn, in the layout of the real data: DIR/train to train on, DIR/eval with other
people to score. A score on them says that the program works, nothing about real faces.

example:
  maskcls-data sample --out runs/sample
  maskcls-data check runs/sample/train
"""


def build_parser() -> argparse.ArgumentParser:
    """The options of `maskcls-data`."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Check a data folder, look for wrong labels in it, or make a small sample to\n"
        "try the project on.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="check | audit | sample"
    )

    check = commands.add_parser(
        "check",
        allow_abbrev=False,
        help="decode every picture, count classes, list all that is wrong",
        description="Decode every picture of a data folder, count the classes and list all that\n"
        "is wrong: labels, names, damaged files, one person under two names.",
        epilog=CHECK_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument(
        "data_dirs",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="the data folder, or several that are trained on together",
    )
    check.add_argument("--fixes", type=Path, metavar="FILE", help="a table that corrects labels")
    check.add_argument(
        "--workers", type=int, default=2, metavar="N", help="threads that decode; default: 2"
    )
    check.add_argument("--json", type=Path, metavar="FILE", help="write the whole report there too")
    check.add_argument(
        "--all", action="store_true", help=f"show all problems, not {EXAMPLES} of each kind"
    )

    audit = commands.add_parser(
        "audit",
        allow_abbrev=False,
        help="rank labels by how much out-of-fold predictions contradict them",
        description="Rank people and pictures by how much out-of-fold predictions contradict\n"
        "their labels; write a page to look through and a table of corrections to review.",
        epilog=AUDIT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    audit.add_argument(
        "--oof",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="oof.csv, or the folder with it; of one task or several",
    )
    audit.add_argument(
        "--out", type=Path, default=Path("audit"), metavar="DIR", help="default: audit"
    )
    audit.add_argument(
        "--top",
        type=_top,
        default=TOP,
        metavar="N",
        help="look among the first N labels of mask, gender and age each, or a share of them such "
        f"as 5%% or 0.05; default: {TOP}",
    )
    audit.add_argument(
        "--no-pictures", action="store_true", help="no pictures of people in audit.html"
    )

    sample = commands.add_parser(
        "sample",
        allow_abbrev=False,
        help="draw a small data set",
        description="Draw a small data set. The same one that is there already is kept, another\n"
        "sample is replaced, and anything else is left alone.",
        epilog=SAMPLE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sample.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to put it")
    sample.add_argument(
        "--people", type=int, default=160, metavar="N", help="people to train on; default: 160"
    )
    sample.add_argument(
        "--eval-people", type=int, default=60, metavar="N", help="people to score; default: 60"
    )
    sample.add_argument("--seed", type=int, default=7, metavar="N", help="default: 7")
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    if args.command == "sample":
        return _sample(args.out, args.people, args.eval_people, args.seed)
    if args.command == "audit":
        return _audit(args.oof, args.out, args.top, pictures=not args.no_pictures)
    if args.workers < 1:
        raise ConfigError(f"--workers {args.workers}: needs at least 1")
    return _check(args.data_dirs, args.fixes, args.workers, args.json, show_all=args.all)


def _check(
    data_dirs: Sequence[Path],
    fixes: Path | None,
    workers: int,
    json_file: Path | None,
    *,
    show_all: bool,
) -> int:
    from maskcls.data.check import check_data
    from maskcls.data.fixes import read_fixes
    from maskcls.files import replacing

    report = check_data(data_dirs, read_fixes(fixes) if fixes else (), workers)
    print(format_report(report, None if show_all else EXAMPLES))
    if json_file is not None:
        with replacing(json_file) as temporary:
            temporary.write_text(json.dumps(report.to_dict(), indent=1) + "\n", "utf-8")
        print(f"wrote {json_file}")
    return 1 if report.broken else 0


def _top(text: str) -> int | float:
    """`100` → a count; `5%`, `0.05` → a share."""
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
        elif "." in text:
            share = float(text)
        elif int(text) >= 1:
            return int(text)
        else:
            raise ValueError
        if not 0 < share <= 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a count from 1 nor a share such as 5% or 0.05"
        ) from None
    return share


def _audit(oof: Sequence[Path], out: Path, top: int | float, *, pictures: bool) -> int:
    from maskcls.data.fixes import PICTURE_FIELDS, write_fixes
    from maskcls.errors import DataError
    from maskcls.evaluation.audit import audit_labels, chosen, propose, write_ranking
    from maskcls.evaluation.gallery import write_gallery
    from maskcls.evaluation.oof import read_oof

    table = out / "fixes.csv"
    if table.exists():
        raise DataError(
            f"{table} is there already, and somebody may have reviewed it; move it, or name "
            "another folder with --out"
        )
    audit = audit_labels([read_oof(path) for path in oof])
    shown = {name: chosen(ranking, top) for name, ranking in audit.rankings.items()}
    for name, ranking in audit.rankings.items():
        what = "pictures" if name in PICTURE_FIELDS else "people"
        wrong = sum(finding.contradicted for finding in ranking)
        swaps = sum(finding.swapped_with is not None for finding in ranking) // 2
        pairs = f", {swaps} {'pair looks' if swaps == 1 else 'pairs look'} swapped" if swaps else ""
        print(
            f"{name}: of {len(ranking)} labels of {what} {wrong} are contradicted{pairs}; "
            f"{len(shown[name])} to look at"
        )
        for caution in audit.cautions[name]:
            print(f"warning: {name}: {caution}")
    write_ranking(audit, out / "ranking.csv")
    write_gallery(audit, shown, out / "audit.html", pictures=pictures)
    proposed = propose(audit, [one for each in shown.values() for one in each])
    write_fixes(table, proposed)
    kept = len(set(audit.fixes) & set(proposed))
    print(
        f"wrote {out / 'audit.html'}, {out / 'ranking.csv'} and {table}: "
        f"{len(proposed) - kept} new corrections"
        + (f", {kept} of {len(audit.fixes)} earlier ones" if audit.fixes else "")
    )
    folders = [word for folder in audit.data_dirs for word in ("--data-dir", folder)]
    command = command_line(["maskcls-train", "--task", "all", *folders, "--fixes", table])
    print(
        f"next: look at {out / 'audit.html'}, take out of {table} what is right as it is, then "
        f"{command}"
    )
    return 0


def _sample(out: Path, people: int, eval_people: int, seed: int) -> int:
    from maskcls.data.sample import ensure_sample
    from maskcls.labels import MASK_OF_STEM

    root = ensure_sample(out, people, eval_people, seed)
    each = len(MASK_OF_STEM)
    print(f"{root / 'train'}: {people} drawn people, {people * each} pictures, train.csv")
    print(f"{root / 'eval'}: {eval_people} others, {eval_people * each} pictures, info.csv, gt.csv")
    return 0


def format_report(report: CheckReport, examples: int | None) -> str:
    """The report on the terminal: counts, problems by kind, at most `examples` of each, verdict."""
    from maskcls.labels import ATTRIBUTES, MULTI

    ages = ATTRIBUTES["age"]
    lines = [f"{report.people} people, {report.pictures} pictures"]
    if report.fixes:
        lines.append(f"{report.corrected} of {report.fixes} corrections of labels apply")
    lines.append("")
    lines.append(f"{'mask':<10} {'gender':<7}" + "".join(f"{age:>8}" for age in ages))
    for start in range(0, MULTI.num_classes, len(ages)):
        digits = MULTI.decode(start)
        mask, gender = (ATTRIBUTES[name][digits[name]] for name in ("mask", "gender"))
        counts = report.classes[start : start + len(ages)]
        lines.append(f"{mask:<10} {gender:<7}" + "".join(f"{count:>8}" for count in counts))
    lines += [
        "",
        "extensions  " + _counts(report.extensions.items()),
        "sizes       " + _counts((f"{w}x{h}", count) for (w, h), count in report.sizes.items()),
        "",
    ]
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in sorted(report.problems, key=lambda problem: problem.severity):
        kinds.setdefault((problem.severity, problem.kind), []).append(problem)
    for (severity, kind), problems in kinds.items():
        lines.append(f"{severity}: {kind} ({len(problems)})")
        lines += [f"  {problem.where}: {problem.detail}" for problem in problems[:examples]]
        if examples is not None and len(problems) > examples:
            lines.append(f"  … and {len(problems) - examples} more; --all shows them")
        lines.append("")
    errors = sum(problem.severity == "error" for problem in report.problems)
    warnings = len(report.problems) - errors
    verdict = "broken" if report.broken else "usable" if warnings else "good"
    lines.append(f"{verdict}: {errors} errors, {warnings} warnings")
    return "\n".join(lines)


def _counts(items: Iterable[tuple[str, int]]) -> str:
    """`384x512 2790, 512x384 10, 7 others`: the most frequent come first, and few are shown."""
    pairs = list(items)
    shown = [f"{name} {count}" for name, count in pairs[:EXAMPLES]]
    rest = len(pairs) - len(shown)
    return ", ".join([*shown, f"{rest} others"] if rest else shown) or "none"
