"""What an import brings with it, and which way imports point (CONTRIBUTING: Layers)."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "maskcls"

# --- what an import brings with it -------------------------------------------------------------

TORCH = frozenset({"torch", "torchvision", "ignite", "efficientnet_pytorch"})
"""Not there at all where labels are only decoded."""
HEAVY = TORCH | {"matplotlib", "pandas", "onnxruntime", "optuna"}
"""Too slow to import before the options are read."""

LIGHT_MODULES = (
    "maskcls.labels",
    "maskcls.errors",
    "maskcls.preprocessing",
    "maskcls.images",
    "maskcls.manifest",
    "maskcls.config",
    "maskcls.files",
    "maskcls.provenance",
    "maskcls.data.profiles",
    "maskcls.data.splits",
    "maskcls.data.check",
    "maskcls.data.sample",
    "maskcls.data.fixes",
    "maskcls.evaluation.scoring",
    "maskcls.evaluation.people",
    "maskcls.evaluation.groups",
    "maskcls.evaluation.answers",
    "maskcls.evaluation.reliability",
    "maskcls.evaluation.report",
    "maskcls.evaluation.predictions_report",
    "maskcls.evaluation.oof",
    "maskcls.evaluation.label_errors",
    "maskcls.evaluation.audit",
    "maskcls.evaluation.gallery",
    "maskcls.search.space",
    "maskcls.search.folder",
    "maskcls.search.results",
    "maskcls.web.server",
    "maskcls.web.site",
    "maskcls.web.vendor",
)
"""Work without PyTorch and bring nothing heavy. `runtime` and `commands` come on top."""


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_under(folder: Path) -> list[str]:
    return sorted(module_name(path) for path in folder.rglob("*.py"))


def brought_in(module: str) -> set[str]:
    """The top-level names in `sys.modules` after `import module` in a fresh process."""
    code = f"import json, sys, {module}; print(json.dumps([m.split('.')[0] for m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_the_package_itself_imports_nothing() -> None:
    assert not brought_in("maskcls") & (HEAVY | {"numpy", "PIL", "yaml"})


@pytest.mark.parametrize(
    "module",
    [*LIGHT_MODULES, "maskcls.data", "maskcls.evaluation", "maskcls.runtime", "maskcls.api"]
    + modules_under(PACKAGE / "commands"),
)
def test_light_module_brings_nothing_heavy(module: str) -> None:
    assert not brought_in(module) & HEAVY


@pytest.mark.parametrize("module", modules_under(PACKAGE / "runtime"))
def test_runtime_brings_no_torch(module: str) -> None:
    assert not brought_in(module) & TORCH


@pytest.mark.parametrize("module", ["maskcls.classifier", "maskcls.devices"])
def test_labelling_with_checkpoints_brings_no_training(module: str) -> None:
    assert "ignite" not in brought_in(module)


def test_the_check_sees_what_is_brought_in() -> None:
    assert {"torch", "torchvision"} <= brought_in("maskcls.models")


def lint(module: str, source: str) -> set[str]:
    """The rules of ruff that a source breaks when it stands where the module does."""
    place = module.replace(".", "/") + ".py"
    ruff = [sys.executable, "-m", "ruff", "check", "--select", "TID", "--output-format", "json"]
    done = subprocess.run(
        [*ruff, "--stdin-filename", place, "-"],
        cwd=ROOT,
        input=source,
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr
    return {finding["code"] for finding in json.loads(done.stdout)}


@pytest.mark.parametrize("module", [*LIGHT_MODULES, "maskcls.runtime.session"])
def test_lint_keeps_torch_out(module: str) -> None:
    assert "TID251" in lint(module, "def load():\n    import torch\n")


@pytest.mark.parametrize(
    "module", [*LIGHT_MODULES, "maskcls.runtime.__init__", "maskcls.commands.train"]
)
def test_lint_keeps_heavy_imports_in_functions(module: str) -> None:
    assert "TID253" in lint(module, "import pandas\n")


def test_lint_lets_the_others_import_torch() -> None:
    for module in ("maskcls.models", "maskcls.data.datasets", "maskcls.training.engines"):
        assert not lint(module, "import torch\n")
    assert not lint("maskcls.commands.train", "def main():\n    import torch\n")


# --- which way imports point -------------------------------------------------------------------

LAYERS: tuple[frozenset[str], ...] = (
    frozenset(
        {"", "labels", "preprocessing", "images", "manifest", "config", "errors"}  # "": maskcls
        | {"files", "folds", "launch", "provenance"}
    ),
    frozenset(
        {"data", "models", "convolutions", "baseline", "losses", "checkpoints", "weights"}
        | {"devices"}
    ),
    frozenset({"training", "onnx", "evaluation", "runtime", "classifier"}),
    frozenset({"api", "search", "web"}),
    frozenset({"commands"}),
)
"""From the lowest; a module imports its own layer and the ones below."""
NEVER: Mapping[str, frozenset[str]] = {
    "runtime": frozenset(
        {
            "training",
            "onnx",
            "evaluation",
            "models",
            "convolutions",
            "baseline",
            "losses",
            "checkpoints",
            "weights",
        }
        | {"classifier", "devices"}
    ),
}
"""Besides the layers: unit → units of `maskcls` that it does not import."""

RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}


def unit_of(module: str) -> str:
    """`maskcls.data.splits` → `data`; `maskcls` → ``."""
    return module.partition(".")[2].partition(".")[0]


def statements(nodes: Iterable[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run when the module does: not those in functions or for type checkers."""
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "handlers", "finalbody", "cases"):
                for child in getattr(node, field, ()):
                    inner = [child] if isinstance(child, ast.stmt) else child.body
                    yield from statements(inner)


def imports_of(source: str, modules: Iterable[str]) -> set[str]:
    """The modules of `modules` that a source file imports when it is imported."""
    found = set()
    for node in statements(ast.parse(source).body):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert not node.level, "relative import"
            # `from maskcls.data import splits` may mean a module or a name in one
            names = [
                name if (name := f"{node.module}.{alias.name}") in modules else str(node.module)
                for alias in node.names
            ]
        found |= {name for name in names if name in modules}
    return found


def import_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Module → modules of `maskcls` that it imports."""
    return {module: imports_of(source, sources) for module, source in sources.items()}


def violations(graph: Mapping[str, set[str]]) -> list[str]:
    """The imports that point the wrong way, one line each."""
    lines = []
    for module in sorted(graph):
        unit = unit_of(module)
        if unit not in RANK:
            lines.append(f"{module} is in no layer: give it a place in LAYERS")
            continue
        for imported in sorted(graph[module]):
            target = unit_of(imported)
            upwards = RANK.get(target, 0) > RANK[unit]
            if upwards or target in NEVER.get(unit, ()):
                lines.append(f"{module} imports {imported}")
    return lines


def tree() -> dict[str, str]:
    return {module_name(path): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


def test_imports_point_one_way() -> None:
    assert violations(import_graph(tree())) == []


def test_imports_make_no_circle() -> None:
    graphlib.TopologicalSorter(import_graph(tree())).prepare()  # raises CycleError


def test_a_layering_violation_is_seen() -> None:
    targets = (
        "maskcls.models",
        "maskcls.training",
        "maskcls.training.run",
        "maskcls.commands.train",
    )
    sources = dict.fromkeys(targets, "") | {
        "maskcls.labels": "from maskcls import models",
        "maskcls.data.splits": "try:\n    import maskcls.training.run\nexcept OSError:\n    pass",
        "maskcls.runtime.session": "from maskcls.models import build_model",
        "maskcls.training.run": "from maskcls.commands.train import main",
        "maskcls.training.engines": "from maskcls.models import build_model",
        "maskcls.surprise": "",
    }
    assert violations(import_graph(sources)) == [
        "maskcls.data.splits imports maskcls.training.run",
        "maskcls.labels imports maskcls.models",
        "maskcls.runtime.session imports maskcls.models",
        "maskcls.surprise is in no layer: give it a place in LAYERS",
        "maskcls.training.run imports maskcls.commands.train",
    ]


def test_a_circle_is_seen() -> None:
    sources = {
        "maskcls.images": "import maskcls.labels",
        "maskcls.labels": "import maskcls.images",
    }
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(import_graph(sources)).prepare()


def test_only_imports_that_run_count() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from maskcls.models import build_model
def main():
    from maskcls.training import run
"""
    modules = {"maskcls.models", "maskcls.training", "maskcls.training.run"}
    assert imports_of(source, modules) == set()
    assert imports_of(source.replace("if TYPE_CHECKING", "if True"), modules) == {"maskcls.models"}
