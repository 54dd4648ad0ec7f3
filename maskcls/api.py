"""The commands as functions: `from maskcls import train, export, load`.

    train("data/train")
    export("runs", "onnx")
    print(load("onnx").predict("photo.jpg"))

What is slow to import is imported when it is used: `load` of an ONNX file needs no PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskcls.config import TrainConfig, read_yaml
from maskcls.errors import ConfigError, unknown
from maskcls.labels import BRANCHES, TASKS
from maskcls.launch import process_number

if TYPE_CHECKING:
    from maskcls.onnx import ExportResult
    from maskcls.runtime import Classifier, Engine
    from maskcls.training import RunResult

StrPath = str | os.PathLike[str]
ALL = "all"


def train(
    data_dir: StrPath | Sequence[StrPath],
    task: str = ALL,
    *,
    config: StrPath | None = None,
    say: Callable[[str], None] = print,
    **settings: Any,
) -> dict[str, RunResult]:
    """Trains networks on folders of people's pictures, as `maskcls-train` does.

        train("data/train", model_dir="runs", epochs=20)
        train("data/train", "age", weights="none", criterion="cross_entropy:0.7,f1:0.3")

    `data_dir`: one folder, or several. `task`: `all`, which is `mask_gender` and then `age`, or one
    task. `settings`: the fields of `maskcls.config.TrainConfig`, which are the options of
    `maskcls-train` with `_` for `-`; what is not given comes from `config`, a YAML file, and then
    from the preset that fits. `say` is given a line at a time; of several processes of torchrun,
    which train together, that of the first.

    Returns:
        Task → its run folder and its best score.

    Raises:
        MaskclsError: see the tree in `maskcls.errors`. A setting that does not exist or does not
            fit is a `ConfigError` before the first training begins.
    """
    if task not in (*TASKS, ALL):
        raise ConfigError(unknown("task", str(task), (*TASKS, ALL)))
    tasks = BRANCHES if task == ALL else (task,)
    folders = [data_dir] if isinstance(data_dir, str | os.PathLike) else data_dir
    flags = {name: _plain(value) for name, value in settings.items()}
    flags["data_dir"] = tuple(os.fspath(folder) for folder in folders)
    values = read_yaml(Path(config)) if config is not None else {}

    from maskcls.training import train
    from maskcls.training.interruption import end_by
    from maskcls.training.presets import choose_configs, follow

    if process_number() > 0:
        say = _nothing
    configs = choose_configs(values, dict.fromkeys(tasks, flags), say)
    if any(chosen.all_folds for chosen in configs):
        raise ConfigError(
            "folds without fold: a group of folds is trained by maskcls-train, or by "
            "maskcls.training.train_group"
        )
    results: dict[str, RunResult] = {}
    before: tuple[TrainConfig, Path] | None = None
    for chosen in configs:
        if before is not None:
            if (late := results[before[0].task].signal) is not None:
                end_by(late)
            chosen = follow(chosen, before, values, flags, say)
        results[chosen.task] = train(chosen, say)
        before = chosen, results[chosen.task].folder / "best.pt"
    return results


def export(
    model: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    precision: str = "fp32",
    input_size: tuple[int, int] | None = None,
    pictures: StrPath | None = None,
    triton: bool = False,
    say: Callable[[str], None] = print,
) -> ExportResult:
    """Writes trained networks as ONNX files into `out`, as `maskcls-export` does, if they answer as
    PyTorch does.

    `model`: the folder of the runs, of which the newest are taken, or run folders or checkpoints.
    `precision`: `fp32`, `fp16` or `int8`. `input_size`: (height, width) that the fused file takes;
    None: any. `pictures`: what to compare on; None: the people who validated. `triton`: a model
    repository for Triton Inference Server, too.

    Raises:
        ExportError: the files do not answer as PyTorch does.
        CheckpointError: a checkpoint that cannot be read, or networks that do not go together.
        ConfigError: no such precision.
        DataError: no pictures to compare on.
    """
    from maskcls.classifier import find_checkpoints
    from maskcls.onnx import export

    return export(
        find_checkpoints(_paths(model)),
        Path(out),
        precision=precision,
        input_size=input_size,
        pictures=None if pictures is None else Path(pictures),
        triton=triton,
        say=say,
    )


def load(
    model: StrPath | Sequence[StrPath],
    *,
    provider: str = "auto",
    batch_size: int = 16,
    workers: int = 2,
) -> Classifier:
    """Trained networks, to label pictures with.

        classifier = load("onnx")
        answer = classifier.predict("photo.jpg")
        answers = classifier.predict(["photo.jpg", Image.open("other.png"), array, content])

    `model`: an ONNX file of `maskcls-export` or the folder with it; or, with PyTorch, what `export`
    takes. `provider`: `auto`, `cpu`, `cuda` or `tensorrt`; one that
    cannot be had is an error.
    `batch_size`, `workers`: pictures at once and threads that decode, of a list.

    Raises:
        CheckpointError: files that cannot be read, or do not answer all attributes.
        ConfigError: a provider that does not exist, or that these files cannot run on.
        ProviderError: a provider that cannot be had.
    """
    from maskcls.runtime import Classifier
    from maskcls.runtime.session import PROVIDERS

    if provider not in (names := ("auto", *PROVIDERS)):
        raise ConfigError(unknown("provider", provider, names))
    engine = open_engine(_paths(model), provider)
    return Classifier(engine, batch_size=batch_size, workers=workers)


def open_engine(
    paths: Sequence[Path], provider: str, lanes: int = 1, cores: int | None = None
) -> Engine:
    """What answers for these files: here is where other kinds of model files join in.

    `lanes`: batches at once, of ONNX files on a CPU; `cores`: how many of them all lanes may use.

    Raises:
        CheckpointError: files that cannot be read, or do not answer all attributes.
        ConfigError: a provider that these files cannot run on.
        ProviderError: a provider that cannot be had.
    """
    folders = [path for path in paths if path.is_dir()]
    if len(paths) == 1 and folders and not any(paths[0].glob("*/*/best*.pt*")):
        fused = paths[0] / "maskcls.onnx"  # the folder of maskcls-export
        paths = [fused] if fused.is_file() else paths
    onnx = [path for path in paths if path.suffix.lower() == ".onnx"]
    if onnx:
        if len(onnx) < len(paths):
            raise ConfigError("--model: give ONNX files or checkpoints, not both")
        from maskcls.runtime import open_onnx

        return open_onnx(onnx, provider, lanes, cores)
    if provider == "tensorrt":
        raise ConfigError("--provider tensorrt: PyTorch checkpoints run on cpu or cuda")
    if lanes > 1:
        raise ConfigError("--lanes: PyTorch checkpoints take one batch at a time; give ONNX files")

    from maskcls.classifier import TorchClassifier, find_checkpoints
    from maskcls.devices import resolve_device

    return TorchClassifier(find_checkpoints(paths), resolve_device(provider, "--provider"))


def _paths(model: StrPath | Sequence[StrPath]) -> list[Path]:
    paths = [model] if isinstance(model, str | os.PathLike) else model
    return [Path(path) for path in paths]


def _nothing(line: str) -> None:
    """Says nothing."""


def _plain(value: Any) -> Any:
    """Settings hold text for paths, as YAML does."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value
