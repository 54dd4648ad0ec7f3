"""README.md is true: its commands run, its examples run, and what it names is there.

Commands run in the README's order, as real processes, in an empty folder that has links to the
clone's `cli/`, `maskcls/`, `examples/`. They stand there as a user would paste them; so that they
take seconds, the test appends options, in which the last one given wins:

- `cli/data.py sample` gets `SMALL_SAMPLE`: it draws the `data/` that all later commands read;
- `cli/train.py` gets `SMALL_TRAINING` (a tiny network, one epoch), but for `--resume`, which takes
  its settings from the run.

`make`, `tensorboard` and the line that enters the virtual environment are looked at without being
run. Python examples run afterwards on what the commands left, under the names of `make demo`.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from maskcls.config import TrainConfig, resolve
from maskcls.labels import ATTRIBUTES, MULTI

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL_SAMPLE = "--people 6 --eval-people 6"
SMALL_TRAINING = "--epochs 1 --height 32 --width 32 --model base --batch-size 16 --weights none"
NOT_RUN = ("make", "source", "tensorboard")


def blocks(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


def program(command: str) -> str:
    """`SM_MODEL_DIR=runs python cli/train.py --task all` → `python`."""
    return next(word for word in shlex.split(command) if "=" not in word)


def script(command: str) -> str:
    """The same → `train`."""
    found = re.search(r"\b(?:python|torchrun) (?:--\S+ )*(?:cli|export)/(\w+)\.py\b", command)
    assert found, f"{command}: not a script of cli/ or export/"
    return found[1]


def small(command: str) -> str:
    """The command with the options that make it quick."""
    if script(command) == "data" and " sample " in command:
        return f"{command} {SMALL_SAMPLE}"
    if script(command) == "train" and "--resume" not in command:
        return f"{command} {SMALL_TRAINING}"
    return command


def table(heading: str) -> list[list[str]]:
    """The rows of the first table whose header line holds `heading`, without the header."""
    lines = iter(README.splitlines())
    for line in lines:
        if line.startswith("|") and heading in line:
            break
    else:
        raise AssertionError(f"no table with {heading!r}")
    next(lines)  # |---|
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        cells = re.split(r"(?<!\\)\|", line.strip("|"))
        rows.append([cell.strip() for cell in cells])
    return rows


def code(text: str) -> list[str]:
    """The `code spans` of a text."""
    return re.findall(r"`([^`\n]+)`", text)


def run(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # Nothing of the caller's: no folders of SageMaker's, and no flags of a `make test`.
    foreign = ("SM_", "PYTHONPATH", "MAKE", "MFLAGS")
    own = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    environment = own | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(cwd / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        command, shell=True, cwd=cwd, env=environment, text=True, capture_output=True
    )


# --- commands and examples -----------------------------------------------------------------------


@pytest.mark.slow
def test_commands_and_examples_run(tmp_path: Path) -> None:
    """One test, so that parallel test processes do not each run all commands."""
    run_commands(tmp_path)
    check_what_commands_leave(tmp_path)
    check_the_table_of_a_run(tmp_path)
    run_python_examples(tmp_path)


def run_commands(folder: Path) -> None:
    for name in ("cli", "export", "maskcls", "examples"):
        (folder / name).symlink_to(ROOT / name)
    for number, yaml in enumerate(blocks("yaml")):
        name = re.match(r"# (\S+\.yaml)\n", yaml)
        assert name, f"YAML block {number} does not begin with its file's name"
        (folder / name[1]).write_text(yaml, encoding="utf-8")
    for command in commands():
        if program(command) not in NOT_RUN:
            done = run(small(command), folder)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def check_what_commands_leave(folder: Path) -> None:
    for name in ("output.csv", "output.csv.json", "score.json", "confusion.png", "out/output.csv"):
        assert (folder / name).is_file(), name
    for name in ("report.html", "eval.html"):
        assert (folder / name).is_file(), name
    ran = [command for command in commands() if program(command) not in NOT_RUN]
    assert {script(command) for command in ran} == {
        *("data", "train", "infer", "evaluate", "to_onnx", "doctor")
    }


def check_the_table_of_a_run(folder: Path) -> None:
    files = [code(row[0])[0] for row in table("| file | what it is |")]
    assert "best.pt" in files
    for name in files:
        assert list((folder / "runs/age/exp").glob(name)), name
    assert (folder / "runs/age/exp2").is_dir()  # as the text says of the names


def run_python_examples(folder: Path) -> None:
    demo = folder / "runs" / "demo"
    demo.mkdir()
    for task in ("mask_gender", "age"):
        shutil.copytree(folder / "runs" / task, demo / task)
    (demo / "onnx").symlink_to(folder / "onnx")
    (demo / "sample").symlink_to(folder / "data")
    # One after the other in one process, each in a namespace of its own: torch loads only once.
    examples = blocks("python")
    files = [f"example{number}.py" for number in range(len(examples))]
    for file, example in zip(files, examples, strict=True):
        (folder / file).write_text(example, encoding="utf-8")
    (folder / "examples.py").write_text(
        f"import runpy\nfor file in {files}:\n    runpy.run_path(file)\n", encoding="utf-8"
    )
    done = run("python -W error examples.py", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    # `print(…)  # …` says what is printed.
    promised = re.findall(r"^print\(.*\)  # (.+)$", "\n".join(examples), flags=re.MULTILINE)
    assert promised
    assert set(promised) <= set(done.stdout.splitlines())


def test_make_targets_exist() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make here")
    named = {re.match(r"make (\w+)", c)[1] for c in commands() if c.startswith("make ")}  # type: ignore[index]
    named |= {span.split()[1] for span in code(README) if re.match(r"make \w", span)}
    assert {"demo", "test", "install", "help"} <= named
    for target in sorted(named):
        done = run(f"make -n {target}", ROOT)
        assert done.returncode == 0, done.stderr
    assert run("make -n no-such-target", ROOT).returncode != 0


def test_the_demo_writes_where_the_readme_says() -> None:
    if shutil.which("make") is None:
        pytest.skip("no make here")
    recipe = run("make -n demo", ROOT).stdout
    assert "--json runs/demo/score.json" in recipe
    assert "--out runs/demo/output.csv" in recipe  # confusion.png lies beside it by default
    assert "--no-confusion" not in recipe
    assert "--model-dir runs/demo " in recipe
    assert [script(line) for line in recipe.splitlines() if " cli/" in line] == [
        *("data", "train", "infer", "evaluate")
    ]


def test_the_environment_is_where_the_readme_says() -> None:
    [line] = [command for command in commands() if program(command) == "source"]
    assert line == "source .venv/bin/activate"
    assert "VENV := .venv\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.slow
def test_tensorboard_has_the_option() -> None:
    [line] = [command for command in commands() if program(command) == "tensorboard"]
    assert line == "tensorboard --logdir runs"
    done = run("tensorboard --helpfull", ROOT)
    assert done.returncode == 0, done.stderr
    assert "--logdir PATH" in done.stdout


# --- what is named is there ----------------------------------------------------------------------


def parser_options() -> dict[str, set[str]]:
    """Script → its options, from its own --help."""
    found = {}
    names = {path.stem: path.stem for path in (ROOT / "cli").glob("*.py")} | {"to_onnx": "export"}
    for stem, name in sorted(names.items()):
        module: ModuleType = importlib.import_module(f"maskcls.commands.{name}")
        parser = module.build_parser()
        texts = [parser.format_help()]
        for action in parser._actions:
            if isinstance(action.choices, dict):  # subcommands
                texts += [sub.format_help() for sub in action.choices.values()]
        found[stem] = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", "\n".join(texts)))
    return found


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))


def test_options_exist() -> None:
    known = parser_options()
    for command in commands():
        if " cli/" in command:
            own = command.partition(" cli/")[2]  # without those of torchrun
            assert options_in(own) <= known[script(command)], command
    everything = set().union(*known.values())
    spans = {option for span in code(README) for option in options_in(span)}
    assert "--allow-seen" in spans
    assert spans <= everything


def test_an_option_that_does_not_exist_is_seen() -> None:
    assert "--no-such-option" not in set().union(*parser_options().values())
    assert options_in("python cli/train.py --no-such-option 3") == {"--no-such-option"}


def anchors() -> set[str]:
    headings = re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", README)
    assert links
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors(), link
        elif not link.startswith("https://"):
            assert (ROOT / link).exists(), link


def test_files_exist() -> None:
    tops = "cli|maskcls|examples|benchmarks|tests"
    named = set(re.findall(rf"(?<![\w/.])(?:{tops})/[\w./-]*\w", README))
    assert "cli/train.py" in named
    for name in sorted(named):
        assert (ROOT / name).exists(), name


# --- tables --------------------------------------------------------------------------------------


def names_table() -> Iterator[tuple[str, str]]:
    for _, names, module in table("| file there |"):
        for name in code(names):
            yield code(module)[0], name


@pytest.mark.parametrize(("module", "name"), list(names_table()))
def test_names_of_the_original_are_there(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def test_class_table() -> None:
    rows = table("| mask | gender |")
    found = {}
    for mask, gender, *ages in rows:
        for age, label in enumerate(ages):
            digits = ATTRIBUTES["mask"].index(mask), ATTRIBUTES["gender"].index(gender), age
            found[int(label)] = dict(zip(ATTRIBUTES, digits, strict=True))
    assert found == {label: MULTI.decode(label) for label in range(MULTI.num_classes)}


def shown(value: object) -> str:
    if value is None:
        return "whole picture"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_presets_table() -> None:
    configs: list[TrainConfig] = [
        resolve(task, start) for start in ("imagenet", "scratch") for task in ("mask_gender", "age")
    ]
    configs.append(resolve("age", "branch"))
    rows = table("| option | fine-tuning: mask_gender")
    for option, *cells in rows:
        field = code(option)[0].removeprefix("--").replace("-", "_")
        for config, cell in zip(configs, cells, strict=True):
            if cell != "–":  # plays no part there
                assert shown(getattr(config, field)) == cell, f"{option}, {config.task}"
    listed = {code(row[0])[0].removeprefix("--").replace("-", "_") for row in rows}
    for start in configs:
        default = TrainConfig(task=start.task)
        differing = {
            field for field, value in start.to_dict().items() if value != default.to_dict()[field]
        }
        assert differing <= listed


def test_names_to_choose_from_are_complete() -> None:
    from maskcls.config import AUGMENTATION_NAMES, CRITERION_NAMES, MODEL_NAMES

    for name in (*MODEL_NAMES, *CRITERION_NAMES, *AUGMENTATION_NAMES):
        assert f"`{name}`" in README, name
