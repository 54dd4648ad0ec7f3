"""`model_card.md`: what exported files are for and how good they are, for those who get them.

The sections are those of Mitchell et al. 2019 (doi:10.1145/3287560.3287596). Every figure is the
manifest's, the split's that its hash names, or the exporter's own: whoever reads the card without
the data can hold it against the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from maskcls.data.splits import side_sizes
from maskcls.evaluation.answers import Answers
from maskcls.evaluation.groups import FEW, Group
from maskcls.evaluation.people import DRAWS, LEVEL, format_interval
from maskcls.labels import AGE_BOUNDS, ATTRIBUTES
from maskcls.manifest import Manifest, OnnxManifest, is_greedy, networks_within
from maskcls.provenance import fingerprint, names_all
from maskcls.runtime.session import FUSED_OUTPUTS, IMAGES, LOGITS

CARD_FILE = "model_card.md"

INTENDED = """\
## Intended use

- Photos of one face, upright and from the front, as those it was trained on.
- Counting over many pictures, such as how many people in a place wear a mask properly; research;
  teaching; sorting pictures that a person looks at afterwards.

Not for:

- **Decisions about a person**: entry, work, credit, insurance, medical care, policing, or whether
  somebody is old enough.
- **Surveillance**, or finding out who somebody is. It knows nobody, and must not be made part of
  what does.
- **People who have not agreed** to being looked at in this way.
- Telling anybody's gender or age. It answers what a face looks like to those who labelled the data.
"""

ETHICS = """\
## Ethics of inferring gender and age from faces

- **Apparent, not true.** A face shows neither gender nor age. The network repeats how people were
  labelled, and whoever looks unlike those of their label is answered wrongly, every time.
- **Two genders.** The labels are male and female. There is no other answer, so everybody else is
  answered wrongly by design, and transgender people often. Do not show the answer to a person as a
  statement about them.
- **Errors are not spread evenly.** See the groups above. Where a group is small or its score low,
  its people bear the errors. Score your own people before you use the files:
  `maskcls-evaluate --gt gt.csv --pred output.csv --report report.html`.
- **Harm.** Being misgendered hurts, a wrong age group can cost somebody a service, and labels of
  faces make it cheap to treat people by what they look like. In many places such labels are
  personal data, and some uses of them are forbidden.
- **Consent.** Label only people who know of it and agree. Keep neither pictures nor labels of
  single people longer than the purpose needs.
"""

Side = Literal["val", "train"]  # of a split by people


@dataclass(frozen=True, eq=False)
class Compared:
    """The pictures of the comparison with PyTorch."""

    answers: Answers | None  # of the files; None where nobody knows what is right
    side: Side | None  # of the training's people; None: given by the user
    trained_on: frozenset[int] | None  # fingerprints; None where the networks do not say
    copies: int = 0  # so many of the pictures are in a training too, by content

    @property
    def where(self) -> str:
        return {
            "val": "the people who validated the training",
            "train": "people of the training, because nobody was new to all of its networks",
            None: "a folder of pictures that was named for it",
        }[self.side]


def model_card(manifest: OnnxManifest, splits: Sequence[str | None], compared: Compared) -> str:
    """The card in Markdown.

    `manifest`: of the file that answers most, its comparison in it. `splits`: per network the text
    of its `split.csv`, None where it is gone.
    """
    sections = (
        _head(manifest),
        [INTENDED],
        _limits(manifest),
        _training(manifest.networks, splits),
        _scores(manifest, compared),
        _groups(compared.answers),
        _parity(manifest, compared),
        [ETHICS],
        _provenance(manifest),
    )
    return "\n".join(part.strip("\n") for section in sections for part in section) + "\n"


def _head(manifest: OnnxManifest) -> Iterator[str]:
    attributes = [name for network in manifest.networks for name in network.get_task().attributes]
    yield f"# Model card: {', '.join(sorted(attributes, key=list(ATTRIBUTES).index))} from a face"
    yield ""
    yield (
        "Written by `maskcls-export`. Figures come from the manifest in the files beside this "
        "card, and from the comparison that they went through."
    )
    yield ""
    yield "## What it is"
    yield ""
    yield from _table(
        ["network", "answers", "classes", "architecture", "input", "labels the average of"],
        [
            [
                network.task,
                ", ".join(network.get_task().attributes),
                len(network.class_names),
                _architecture(network),
                f"{network.preprocess.height}x{network.preprocess.width}",
                _views(network),
            ]
            for network in manifest.networks
        ],
    )
    yield ""
    yield from _table(
        ["attribute", "classes"],
        [[name, ", ".join(classes)] for name, classes in ATTRIBUTES.items() if name in attributes],
    )
    yield ""
    if manifest.kind == "fused":
        outputs = ", ".join(f"`{name}`" for name in FUSED_OUTPUTS)
        size = "any size" if manifest.input_size is None else "{}x{}".format(*manifest.input_size)
        yield (
            f"`maskcls.onnx` takes `{IMAGES}`, uint8 (N, H, W, 3), RGB, upright, {size}, and "
            f"answers {outputs}. The networks are taken as independent: the probability of a class "
            "is the product of theirs."
        )
    else:
        [network] = manifest.networks
        yield (
            f"`{network.task}.onnx` takes `{IMAGES}`, float32 (N, 3, {network.preprocess.height}, "
            f"{network.preprocess.width}), normalised, and answers `{LOGITS}`."
        )
    yield ""


def _architecture(network: Manifest) -> str:
    members = networks_within(network)
    models = ", ".join(dict.fromkeys(member.model for member in members))
    return models if len(members) == 1 else f"the mean of {len(members)}: {models}"


def _views(network: Manifest) -> str:
    views = {member.tta for member in networks_within(network)}
    if len(views) > 1:
        return "picture, and of some networks its mirror image"
    return "picture and mirror image" if views == {"flip"} else "the picture alone"


def _limits(manifest: OnnxManifest) -> Iterator[str]:
    years = " and ".join(str(bound) for bound in AGE_BOUNDS)
    yield "## Limits"
    yield ""
    yield "- It answers whatever it is shown: a picture without a face gets a label, too."
    yield "- The scores below are of people like those in the data. Other cameras, light, masks and"
    yield "  faces are answered worse, and nothing here says by how much."
    if any("age" in network.get_task().attributes for network in manifest.networks):
        yield f"- The borders of the age groups, {years} years, are conventions. People near them"
        yield "  are often taken for the neighbouring group."
    for network in manifest.networks:
        if any(member.calibration is None for member in networks_within(network)):
            yield f"- The probabilities of {network.task} are not calibrated: take them as an"
            yield "  order, not as shares."
    if manifest.precision != "fp32":
        yield f"- It computes in {manifest.precision}; what that costs stands under *Comparison*"
        yield f"  {'for its weights alone' if manifest.precision == 'fp16' else 'with PyTorch'}."
    yield ""


def _training(networks: Sequence[Manifest], splits: Sequence[str | None]) -> Iterator[str]:
    yield "## Training data"
    yield ""
    told: dict[str, list[str]] = {}  # split hash → its networks: branches share their people
    for network in networks:
        told.setdefault(network.split_hash, []).append(network.task)
    texts = {network.split_hash: text for network, text in zip(networks, splits, strict=True)}
    for digest, tasks in told.items():
        text = texts[digest]
        if text is None:
            yield f"{' and '.join(tasks)}: not known. `split.csv` was not beside the checkpoint."
            yield ""
            continue
        sizes = side_sizes(text)
        totals = {
            side: [sum(counts[index] for counts in groups.values()) for index in range(2)]
            for side, groups in sizes.items()  # an ensemble of folds has nobody who validated
        }
        yield (
            f"{' and '.join(tasks)}: {totals['train'][0]} people with {totals['train'][1]} "
            f"pictures trained, {totals['val'][0]} others with {totals['val'][1]} pictures "
            "validated. Nobody is on both sides. Gender and age are as the data has them."
        )
        yield ""
        groups = sorted({group for counts in sizes.values() for group in counts})
        yield from _table(
            ["gender", "age", "people who trained", "pictures", "who validated", "pictures"],
            [
                [
                    gender,
                    ATTRIBUTES["age"][age],
                    *sizes["train"].get((gender, age), (0, 0)),
                    *sizes["val"].get((gender, age), (0, 0)),
                ]
                for gender, age in groups
            ],
        )
        yield ""
    for network in networks:
        if "macro_f1" in network.metrics:
            calibrated = network.metrics.get("calibrated_macro_f1")
            after = "" if calibrated is None else f", {calibrated:.4f} with its calibration,"
            yield (
                f"{network.task} validated with macro F1 {network.metrics['macro_f1']:.4f}{after} "
                f"over its {len(network.class_names)} classes, in PyTorch."
            )
        if network.fixes:
            yield f"For {network.task}, {len(network.fixes)} labels were corrected beforehand."
        if network.config.get("border_ages") == "drop":
            yield f"Of these, {network.task} left out people in the last years of an age group."
    yield ""


def _scores(manifest: OnnxManifest, compared: Compared) -> Iterator[str]:
    answers = compared.answers
    yield "## Scores"
    yield ""
    if answers is None:
        yield f"Not known: the files were compared on {compared.where}, without labels."
        yield ""
        return
    people = set(answers.people or ())
    yield (
        f"Of these files, on {compared.where}: {len(answers.truth)} pictures of {len(people)} "
        "people. Macro F1 is the mean over classes, so that a rare one counts as much as a "
        f"frequent one. The range is the {LEVEL:.0%} interval over {DRAWS} draws of as many people "
        "from these."
    )
    yield ""
    if compared.side == "val":
        yield (
            "These people chose the epoch and fitted the calibration, where there is one. "
            "Strangers are scored a little lower."
        )
        if greedy := [one.task for one in manifest.networks if is_greedy(one)]:
            yield (
                f"They chose, too, which networks are in the greedy soup of {' and '.join(greedy)}."
            )
    trained_on = compared.trained_on or frozenset()
    if seen := sum(fingerprint(person) in trained_on for person in people):
        yield f"**{seen} of them are people that a network was trained on: the scores flatter.**"
    elif compared.copies:
        yield (
            f"**{compared.copies} of the pictures are in the training of a network too, in another "
            "person's folder: the scores flatter.**"
        )
    elif not names_all(compared.trained_on):
        yield "It is not known whether a network was trained on some of them."
    yield ""
    rows = []
    for part in answers.parts():
        scores = part.scores()
        macro_f1, accuracy = map(format_interval, part.intervals())
        rows.append(
            [part.name, f"{scores.macro_f1:.4f}", macro_f1, f"{scores.accuracy:.4f}", accuracy]
        )
    yield from _table(["of", "macro F1", "range", "accuracy", "range"], rows)
    yield ""


def _groups(answers: Answers | None) -> Iterator[str]:
    if answers is None:
        return
    yield "### Groups"
    yield ""
    yield (
        "Is it as good for some people as for others? Macro F1 here is the mean over the classes "
        f"that the group's truth has. A star marks groups of fewer than {FEW} people, whose scores "
        "are mostly chance."
    )
    yield ""
    told = {"race": "race, as the data has it"}
    header = ["macro F1", "accuracy", "people", "pictures"]
    yield from _table(
        ["", "group", *header],
        [
            [told.get(name, name), *_group(group)]
            for name in answers.factors()
            for group in answers.groups(name)
        ],
    )
    yield ""
    yield from _table([*ATTRIBUTES, *header], map(_group, answers.groups(*ATTRIBUTES)))
    yield ""


def _group(group: Group) -> list[object]:
    star = " *" if group.unreliable else ""
    return [
        *group.values,
        f"{group.macro_f1:.4f}{star}",
        f"{group.accuracy:.4f}{star}",
        group.people,
        group.pictures,
    ]


def _parity(manifest: OnnxManifest, compared: Compared) -> Iterator[str]:
    parity = manifest.parity
    yield "## Comparison with PyTorch"
    yield ""
    verdict = "passed" if parity["passed"] else f"failed: {'; '.join(parity['failures'])}"
    computing = f"**{manifest.precision}**"
    if manifest.precision == "fp16":
        computing += ", in the comparison a CPU's float32 with its weights"
    yield (
        f"The files compute in {computing}. On {parity['pictures']} pictures, of "
        f"{compared.where}, they were compared with the networks that they were made from: "
        f"**{verdict}**."
    )
    yield ""
    networks: Mapping[str, Mapping[str, Any]] = parity["networks"]
    yield from _table(
        ["network", "logits differ by at most", "on average", "labels that differ"],
        [
            [name, f"{e['max_logit']:.2g}", f"{e['mean_logit']:.2g}", f"{e['flips']}"]
            for name, e in networks.items()
        ],
    )
    yield ""
    yield (
        f"From file to label, {parity['label_flips']} of {parity['pictures']} labels differ; macro "
        f"F1 against {parity['f1_of']} is {parity['f1_pytorch']:.4f} in PyTorch and "
        f"{parity['f1_onnx']:.4f} in the files."
    )
    yield ""


def _provenance(manifest: OnnxManifest) -> Iterator[str]:
    yield "## Provenance"
    yield ""
    yield from _table(
        ["network", "checkpoint, sha256", "split, sha256", "git revision", "seed"],
        [
            [
                network.task,
                f"`{digest}`",
                f"`{network.split_hash}`" if network.split_hash else "not known",
                f"`{network.git_revision}`" if network.git_revision else "not known",
                network.config.get("seed", "not known"),
            ]
            for network, digest in zip(manifest.networks, manifest.checkpoints, strict=True)
        ],
    )
    yield ""
    made = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    yield f"Exported to opset {manifest.opset} with {made}."
    for network in manifest.networks:
        if network.versions:
            used = ", ".join(f"{name} {version}" for name, version in network.versions.items())
            yield f"{network.task} was trained with {used}."
    yield "Every setting of the training is in the files' metadata, under the key `maskcls`."


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """A table in Markdown; what comes first in a row is text, numbers are right-aligned."""
    listed = [list(row) for row in rows]
    yield _row(header)
    yield _row(
        "---:" if listed and _is_number(str(listed[0][column])) else "---"
        for column in range(len(header))
    )
    for row in listed:
        yield _row(row)


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(_cell(str(cell)) for cell in cells) + " |"


def _cell(text: str) -> str:
    """Names come from folders, and may hold what means something in Markdown."""
    plain = " ".join(text.split())
    for sign in ("\\", "|", "<"):
        plain = plain.replace(sign, f"\\{sign}")
    return plain


def _is_number(text: str) -> bool:
    return text.removesuffix(" *").replace(".", "", 1).isdigit()
