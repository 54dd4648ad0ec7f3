"""README.md and docs/ are true: their commands and examples run, and what they name is there.

Commands run in the README's order and then page by page, as processes of their own, in an
empty folder that has links to the clone's `cli/`, `maskcls/`, `examples/`. They stand there as a
user would paste them; so that they take seconds, the test appends options, in which the last one
given wins:

- `cli/data.py sample` gets `SMALL_SAMPLE`: it draws the `data/` that all later commands read;
- `cli/train.py` and `cli/search.py` get `SMALL_TRAINING` (a tiny network, one epoch), but where
  they go on with a run or a study, which has its settings; and random weights unless training
  starts from a checkpoint of before;
- the export to int8 gets `SMALL_EXPORT`, since so small a network has no score to lose.

A page goes on with what the README has left, and a command that has been run is not run again.

`make`, `tensorboard` and the line that enters the virtual environment are looked at without being
run, and so is `cli/demo.py`, which needs npm and serves until it is stopped (tests/web runs it).
Python examples run afterwards on what the commands left, under the names of `make demo`.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from maskcls.config import TrainConfig, resolve
from maskcls.labels import ATTRIBUTES, MULTI

RunScript = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL_SAMPLE = "--people 6 --eval-people 6"
SMALL_TRAINING = "--epochs 1 --height 32 --width 32 --model base --batch-size 16"
SMALL_EXPORT = "--max-f1-drop 1"
NOT_RUN = ("make", "source", "tensorboard")
DOCS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs").rglob("*.md"))
}
PAGES = {"README.md": README} | DOCS


def blocks(language: str, page: str = README) -> list[str]:
    """The code blocks of a language."""
    return [block for own, _, block in fenced(page) if own == language]


def fenced(page: str) -> list[tuple[str, str, str]]:
    """Language, title and content of all code blocks. ```csv title="fixes.csv" """
    found: list[tuple[str, str, str]] = re.findall(
        r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', page, flags=re.MULTILINE | re.DOTALL
    )
    assert 2 * len(found) == len(re.findall("^```", page, flags=re.MULTILINE))
    return found


def commands(page: str = README) -> list[str]:
    return [line for block in blocks("bash", page) for line in block.splitlines() if line.strip()]


def all_commands() -> list[str]:
    return [command for page in PAGES.values() for command in commands(page)]


def program(command: str) -> str:
    """`SM_MODEL_DIR=runs python cli/train.py --task all` → `python`."""
    return next(word for word in shlex.split(command) if "=" not in word)


def script(command: str) -> str:
    """The same → `train`; empty for another program."""
    if Path(program(command)).name not in ("python", "torchrun"):
        return ""
    found = re.search(r"\b(?:python|torchrun) (?:--\S+ )*(?:cli|export)/(\w+)\.py\b", command)
    assert found, f"{command}: not a script of cli/ or export/"
    return found[1]


def is_run(command: str) -> bool:
    return program(command) not in NOT_RUN and script(command) != "demo"


def small(command: str) -> str:
    """The command with the options that make it quick."""
    if script(command) == "data" and " sample " in command:
        return f"{command} {SMALL_SAMPLE}"
    begins = script(command) == "train" and "--resume" not in command
    if begins or (script(command) == "search" and "--task" in command):
        start = "" if re.search(r"--weights \S+\.pt\b", command) else " --weights none"
        return f"{command} {SMALL_TRAINING}{start}"
    if script(command) == "to_onnx" and "int8" in command:
        return f"{command} {SMALL_EXPORT}"
    return command


def table(heading: str) -> list[list[str]]:
    """The rows of the first table whose header line holds `heading`, without the header."""
    lines = iter("\n".join(PAGES.values()).splitlines())
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


def environment(cwd: Path) -> dict[str, str]:
    """Nothing of the caller's: no folders of SageMaker's, and no flags of a `make test`."""
    foreign = ("SM_", "PYTHONPATH", "MAKE", "MFLAGS")
    own = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return own | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(cwd / "cache"),
        "OMP_NUM_THREADS": "1",
    }


def run(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, shell=True, cwd=cwd, env=environment(cwd), text=True, capture_output=True
    )


def run_quickly(command: str, cwd: Path, run_script: RunScript) -> subprocess.CompletedProcess[str]:
    """A command that only starts a script of ours does so by `run_script`; any other goes to the
    shell."""
    if program(command) != "python" or re.search(r"[^\w\s./=,-]", command):
        return run(command, cwd)
    words = command.split()
    start = words.index("python")
    given = dict(word.split("=", 1) for word in words[:start])
    return run_script(*words[start + 1 :], cwd=cwd, env=environment(cwd) | given)


# --- commands and examples -----------------------------------------------------------------------


@pytest.mark.slow
def test_commands_and_examples_run(tmp_path: Path, run_script: RunScript) -> None:
    """One test, so that parallel test processes do not each run all commands."""
    run_commands(tmp_path, run_script)
    check_what_commands_leave(tmp_path)
    check_the_table_of_a_run(tmp_path)
    run_python_examples(tmp_path)


def run_commands(folder: Path, run_script: RunScript) -> None:
    for name in ("cli", "export", "maskcls", "examples"):
        (folder / name).symlink_to(ROOT / name)
    ran = set()
    for page, text in PAGES.items():
        for _, title, content in fenced(text):
            if title:
                (folder / title).write_text(content, encoding="utf-8")
        for command in commands(text):
            if is_run(command) and command not in ran:
                done = run_quickly(small(command), folder, run_script)
                assert done.returncode == 0, f"{page}: {command}\n{done.stdout}{done.stderr}"
                ran.add(command)


def check_what_commands_leave(folder: Path) -> None:
    for name in ("output.csv", "output.csv.json", "score.json", "confusion.png", "out/output.csv"):
        assert (folder / name).is_file(), name
    for name in ("report.html", "eval.html"):
        assert (folder / name).is_file(), name
    ran = [command for command in all_commands() if is_run(command)]
    assert {script(command) for command in ran} - {""} == {
        *("data", "train", "search", "infer", "evaluate", "to_onnx", "doctor", "combine")
    }


def check_the_table_of_a_run(folder: Path) -> None:
    files = [code(row[0])[0] for row in table("| file | what it is |")]
    assert "best.pt" in files
    for name in files:
        if name == "best.prev.pt":  # after the second save
            continue
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
    every = [example for page in PAGES.values() for example in blocks("python", page)]
    examples = list(dict.fromkeys(every))
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
    named = set()
    for page in PAGES.values():
        named |= {command.split()[1] for command in commands(page) if command.startswith("make ")}
        named |= {span.split()[1] for span in code(page) if re.match(r"make \w", span)}
    assert {"demo", "test", "install", "help", "docs"} <= named
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
    [line] = [command for command in all_commands() if program(command) == "tensorboard"]
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
    everything = set().union(*known.values())
    for name, page in PAGES.items():
        for command in commands(page):
            if script(command):
                own = re.split(r" (?:cli|export)/", command)[1]  # without those of torchrun
                assert options_in(own) <= known[script(command)], command
        spans = {option for span in code(page) for option in options_in(span)}
        assert spans <= everything, name
    assert any("--allow-seen" in code(page) for page in PAGES.values())


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
    tops = "cli|export|maskcls|examples|benchmarks|docs|tests"
    text = "\n".join(PAGES.values())
    named = set(re.findall(rf"(?<![\w/.])(?:{tops})/[\w./-]*\w", text))
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
        assert f"`{name}`" in DOCS["docs/reference/settings.md"], name
