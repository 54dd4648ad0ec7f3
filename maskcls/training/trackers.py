"""Trackers: programs that show a training while it runs, each through Ignite's own logger.

There is one way to them. `tracking` opens those that the config names and closes them,
`Trackers.attach` lets them follow loss, learning rate and scores, `Trackers.show` brings pictures,
`Trackers.keep` the files of the finished run. A tracker that cannot be opened is an error before
the first step; one that fails later is left out, and the training goes on.

Where runs go to, and whether a network is needed, the clients' own variables say: WANDB_PROJECT and
WANDB_MODE, MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, CLEARML_OFFLINE_MODE and others.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import clearml_logger, mlflow_logger, tensorboard_logger, wandb_logger
from matplotlib.figure import Figure

from maskcls.classifier import BEST
from maskcls.config import TrainConfig, parse_trackers
from maskcls.errors import MissingExtraError, TrackerError
from maskcls.evaluation.report import REPORT
from maskcls.files import write_atomic
from maskcls.training.figures import to_pixels
from maskcls.training.processes import is_first

PROJECT = "maskcls"  # where the client's variables name none
EVERY = 20  # steps between two reports of the loss
IDS_FILE = "trackers.json"
"""In the run folder: tracker → the id that a resumed training goes on with."""
UNWATCHED = (
    "detect_repository",  # its search for packages may take minutes; a checkpoint has the versions
    "hydra",
    "scikit",
    "joblib",
    "matplotlib",
    "tensorflow",
    "tensorboard",
    "tfdefines",
    "pytorch",
    "megengine",
    "xgboost",
    "catboost",
    "fastai",
    "lightgbm",
    "gradio",
)
"""What ClearML would follow by itself, in the names of its `Task.init`."""
KEPT = (BEST, "config.yaml", REPORT)
"""Files of a finished run that go to the trackers."""


class Tracker(ABC):
    """A tracker that is open. `known`: the id of the run that is resumed, if it has one."""

    package: str
    extra: str  # that brings the package
    handlers: ModuleType  # Ignite's, for its logger
    logger: Any  # Ignite's; it hands on what the client itself can do
    id: str | None = None

    @abstractmethod
    def __init__(self, config: TrainConfig, folder: Path, known: str | None) -> None: ...

    def epoch_step(self, engine: Engine) -> int:
        """Where on its axis an epoch's values go."""
        return engine.state.epoch

    def go_on(self, engine: Engine) -> None:  # noqa: B027 (only files keep what is done again)
        """Before the first step of a resumed training: what it does again is shown once."""

    @abstractmethod
    def show(self, name: str, pixels: np.ndarray, engine: Engine) -> None:
        """A picture, uint8 (H, W, 3), at the end of an epoch."""

    @abstractmethod
    def keep(self, path: Path) -> None:
        """A file of the finished run."""

    def close(self, finished: bool) -> None:
        """`finished`: whether the training came to its end."""
        self.logger.close()


class TensorBoard(Tracker):
    package, extra, handlers = "tensorboard", "train", tensorboard_logger

    def __init__(self, config: TrainConfig, folder: Path, known: str | None) -> None:
        self.logger = tensorboard_logger.TensorboardLogger(log_dir=str(folder))

    def go_on(self, engine: Engine) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        # SummaryWriter's `purge_step`, which it takes only before the step is known.
        start = SessionLog(status=SessionLog.START)
        next_step = engine.state.iteration + 1
        self.logger.writer.file_writer.add_event(Event(step=next_step, session_log=start))

    def show(self, name: str, pixels: np.ndarray, engine: Engine) -> None:
        self.logger.writer.add_image(name, pixels, engine.state.epoch, dataformats="HWC")
        self.logger.writer.flush()

    def keep(self, path: Path) -> None:
        """Nothing: its events lie beside the file."""


class WeightsAndBiases(Tracker):
    package, extra, handlers = "wandb", "wandb", wandb_logger

    def __init__(self, config: TrainConfig, folder: Path, known: str | None) -> None:
        self.logger = wandb_logger.WandBLogger(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=_run_name(config, folder),
            id=known,
            resume="allow",
            config=config.to_dict(),
            allow_val_change=True,  # the folders of a resumed run
        )
        self.id = str(self.logger.run.id)
        self.logger.define_metric("epoch/*", step_metric="epoch/epoch")

    def epoch_step(self, engine: Engine) -> int:
        # It takes steps in ascending order only; the axis of epochs is defined above.
        return engine.state.iteration

    def show(self, name: str, pixels: np.ndarray, engine: Engine) -> None:
        self.logger.log({name: self.logger.Image(pixels)}, step=self.epoch_step(engine))

    def keep(self, path: Path) -> None:
        artifact = self.logger.Artifact(f"{self.id}-{path.stem}", type=path.stem)
        artifact.add_file(str(path))
        self.logger.log_artifact(artifact)

    def close(self, finished: bool) -> None:
        if not finished:
            self.logger.finish(exit_code=1)
        super().close(finished)


class MLflow(Tracker):
    package, extra, handlers = "mlflow", "mlflow", mlflow_logger

    def __init__(self, config: TrainConfig, folder: Path, known: str | None) -> None:
        import mlflow

        if known is None:
            mlflow.start_run(experiment_id=_experiment(), run_name=_run_name(config, folder))
            # Once: it refuses other values, and a resumed run may lie elsewhere.
            mlflow.log_params(config.to_dict())
        else:
            mlflow.start_run(run_id=known)
        self.logger = mlflow_logger.MLflowLogger()  # takes the run that was started
        self.id = str(self.logger.active_run.info.run_id)

    def show(self, name: str, pixels: np.ndarray, engine: Engine) -> None:
        file = f"{name.replace(' ', '_')}/epoch_{engine.state.epoch:03}.png"
        self.logger.log_image(pixels, artifact_file=file)

    def keep(self, path: Path) -> None:
        self.logger.log_artifact(str(path))

    def close(self, finished: bool) -> None:
        if not finished:
            self.logger.end_run("FAILED")
        super().close(finished)


class ClearML(Tracker):
    package, extra, handlers = "clearml", "clearml", clearml_logger

    def __init__(self, config: TrainConfig, folder: Path, known: str | None) -> None:
        from clearml import Task

        # What is stored offline cannot be gone on with: that is another task.
        goes_on = known is not None and not known.startswith("offline-") and not Task.is_offline()
        self.logger = clearml_logger.ClearMLLogger(
            project_name=PROJECT,
            task_name=_run_name(config, folder),
            reuse_last_task_id=known if goes_on else False,
            continue_last_task=0 if goes_on else False,  # 0: iterations are counted here
            # What goes there is what is sent from here, not whatever torch saves or anybody prints.
            auto_connect_arg_parser=False,
            auto_connect_frameworks=dict.fromkeys(UNWATCHED, False),
            auto_connect_streams=False,
        )
        self.task = self.logger.get_task()
        self.id = str(self.task.id)
        self.task.connect(config.to_dict(), name="config")

    def show(self, name: str, pixels: np.ndarray, engine: Engine) -> None:
        self.logger.report_image(name, name, iteration=engine.state.epoch, image=pixels)

    def keep(self, path: Path) -> None:
        self.task.upload_artifact(path.name, artifact_object=str(path), wait_on_upload=True)

    def close(self, finished: bool) -> None:
        if not finished:
            self.task.mark_stopped(status_message="the training did not come to its end")
        super().close(finished)


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "clearml": ClearML,
}


class Trackers:
    """The trackers of a run. One that fails is left out from then on, which is said once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._opened: dict[str, Tracker] = {}
        self._failed: set[str] = set()

    def __bool__(self) -> bool:
        """Whether anybody looks."""
        return self._failed != self._opened.keys()

    def open(self, name: str, config: TrainConfig, folder: Path, known: str | None) -> str | None:
        """Returns the id of the tracked run, where the tracker gives one.

        Raises:
            TrackerError: it cannot be opened.
        """
        try:
            tracker = TRACKERS[name](config, folder, known)
        except Exception as error:  # whatever the client has: no server, no account, a full disk
            raise TrackerError(
                f"--tracker {name}: cannot be opened: {_reason(error).rstrip('.')}. Set up its "
                f"account, server or variables, or leave {name} out of --tracker"
            ) from error
        self._opened[name] = tracker
        if tracker.id is not None:
            which = "goes on with" if tracker.id == known else "new"
            self._say(f"{name}: {which} run {tracker.id}")
        return tracker.id

    def attach(
        self,
        trainer: Engine,
        optimizer: torch.optim.Optimizer,
        scores: Callable[[], Mapping[str, float]],
    ) -> None:
        """Lets them follow loss and learning rate, and at the end of an epoch the `scores`."""

        @trainer.on(Events.STARTED)
        def go_on(engine: Engine) -> None:
            if engine.state.iteration:
                self._each(lambda tracker: tracker.go_on(engine))

        for name, tracker in self._opened.items():
            steps = Events.ITERATION_COMPLETED(every=EVERY)
            loss = tracker.handlers.OutputHandler(
                tag="step", output_transform=lambda output: {"loss": output["loss"]}
            )
            rate = tracker.handlers.OptimizerParamsHandler(optimizer, param_name="lr")
            epoch = tracker.handlers.OutputHandler(
                tag="epoch",
                output_transform=lambda _: dict(scores()),
                global_step_transform=lambda engine, _, own=tracker: own.epoch_step(engine),
            )
            for handler, event in (
                (loss, steps),
                (rate, steps),
                (epoch, Events.EPOCH_COMPLETED),
            ):
                tracker.logger.attach(trainer, self._harmless(name, handler), event)

    def show(self, name: str, figure: Figure, engine: Engine) -> None:
        """A picture at the end of the engine's epoch."""
        pixels = to_pixels(figure)
        self._each(lambda tracker: tracker.show(name, pixels, engine))

    def keep(self, folder: Path) -> None:
        """The files of a finished run."""
        for path in (folder / name for name in KEPT):
            if path.is_file():
                self._each(lambda tracker, path=path: tracker.keep(path))  # type: ignore[misc]

    def close(self, finished: bool) -> None:
        for name, tracker in self._opened.items():
            if name in self._failed:
                with suppress(Exception):  # that it failed has been said
                    tracker.close(finished)
            else:
                self._try(name, lambda tracker=tracker: tracker.close(finished))  # type: ignore[misc]

    def _harmless(
        self, name: str, handler: Callable[..., None]
    ) -> Callable[[Engine, Any, Any], None]:
        def call(engine: Engine, logger: Any, event: Any) -> None:
            self._try(name, lambda: handler(engine, logger, event))

        return call

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in self._opened.items():
            self._try(name, lambda tracker=tracker: do(tracker))  # type: ignore[misc]

    def _try(self, name: str, do: Callable[[], None]) -> None:
        if name in self._failed:
            return
        try:
            do()
        except Exception as error:  # whatever it is: it is not worth a training
            self._failed.add(name)
            self._say(f"warning: {name} failed and is left out from here on: {_reason(error)}")


@contextmanager
def tracking(config: TrainConfig, folder: Path, say: Callable[[str], None]) -> Iterator[Trackers]:
    """The trackers of a run, open within its block. Of several processes the first has them.

    Raises:
        TrackerError: one cannot be opened, or the folder's record of them is damaged.
    """
    trackers, finished = Trackers(say), False
    known = _read_ids(folder / IDS_FILE)
    try:
        for name in parse_trackers(config.tracker) if is_first() else ():
            found = trackers.open(name, config, folder, known.get(name))
            if found is not None and found != known.get(name):
                known[name] = found
                write_atomic(folder / IDS_FILE, (json.dumps(known, indent=1) + "\n").encode())
        yield trackers
        finished = True
    finally:
        trackers.close(finished)


def require_packages(config: TrainConfig) -> None:
    """
    Raises:
        MissingExtraError: a tracker's package is not installed.
    """
    for name in parse_trackers(config.tracker):
        kind = TRACKERS[name]
        spec = find_spec(kind.package)
        # Without an origin it is a mere folder: wandb writes one of its own name.
        if spec is None or spec.origin is None:
            raise MissingExtraError(kind.package, kind.extra, f"--tracker {name}")


def _run_name(config: TrainConfig, folder: Path) -> str:
    return f"{config.task}/{folder.name}"


def _experiment() -> str | None:
    """Where MLflow's run belongs; None where its own variables say."""
    import mlflow

    if os.environ.get("MLFLOW_EXPERIMENT_NAME") or os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return None
    found = mlflow.get_experiment_by_name(PROJECT)
    return str(found.experiment_id if found else mlflow.create_experiment(PROJECT))


def _read_ids(path: Path) -> dict[str, str]:
    try:
        ids = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise TrackerError(f"{path}: not JSON: {error}; remove it to start new tracked runs") from (
            None
        )
    if not isinstance(ids, dict):
        raise TrackerError(f"{path}: holds no ids; remove it to start new tracked runs")
    return {str(name): str(value) for name, value in ids.items()}


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
