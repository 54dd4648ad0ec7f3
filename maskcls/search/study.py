"""The search itself: Optuna says what to try, and each trial is an ordinary training.

The study survives its process. A trial that was broken off, by a signal or by SIGKILL, goes on in
its run folder when the search does. Each trial has a sampler with a seed of its own, so that a
search with interruptions tries the same as one without; but for Hyperband, which deals its budgets
by Optuna's count of trials, and that has those twice that were broken off.
"""

from __future__ import annotations

import gc
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from maskcls.checkpoints import find_checkpoint
from maskcls.config import MACHINE_FIELDS, differences
from maskcls.errors import ConfigError, StudyError, TrainingError, WeightsError
from maskcls.files import locked, write_atomic
from maskcls.search.folder import CONFIG, JOURNAL, SPACE, StudyFolder
from maskcls.search.results import TrialResult, best_of, short, text_of, write_results
from maskcls.search.space import Choices, Range, Space
from maskcls.training import resume, train
from maskcls.training.interruption import Interruption

FAILURES = (ConfigError, TrainingError, WeightsError, RuntimeError, MemoryError)
"""What ends a trial and not the search: values that do not go together, a loss that is NaN, too
little memory. Data that are gone or a full disk would end the next trial, too."""
FAILED_IN_A_ROW = 5
"""So many failed trials end the search: they will not be the last."""
FEW_TRIALS = 5
"""Fewer that were trained to the end have no median to fall behind, and do not say what matters."""
_NUMBER, _REASON = "number", "reason"  # attributes of Optuna's trials
_CONFIG, _SPACE = "config", "space"  # and of its study
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def search(
    folder: StudyFolder,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    pruner: str = "median",
    only_best: bool = False,
    say: Callable[[str], None] = print,
) -> list[TrialResult]:
    """Tries until the study has so many `trials`, or for so many `minutes` (the last trial ends
    later); begins a study, or goes on with it. Returns all trials that have ended.

    `pruner`: a name of `PRUNER_NAMES`. `only_best`: keeps the checkpoints of no other trial.

    Raises:
        StudyError: another process is searching in it, its journal is damaged, the data have
            changed, or too many trials failed in a row.
        MaskclsError: what no trial could do without is missing, such as data.
        KeyboardInterrupt, SystemExit: after a signal; the study can go on.
    """

    def busy() -> None:
        raise StudyError(f"{folder.path}: another process is searching in it")

    with locked(folder.path / ".lock", busy):
        return _Search(folder, pruner, only_best, say).run(trials, minutes)


class _Search:
    def __init__(
        self, folder: StudyFolder, pruner: str, only_best: bool, say: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.only_best = only_best
        self.say = say
        self.distributions = distributions(folder.space)
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # what there is to say is said here
        self.study = open_study(folder.path / JOURNAL, create_pruner(pruner, folder.config.epochs))
        self._check_unchanged()
        self._pick_up()

    def run(self, trials: int | None, minutes: float | None) -> list[TrialResult]:
        end = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
        failed = 0
        while (trials is None or len(self._ended()) < trials) and time.monotonic() < end:
            state = self._try_one(f" of {trials}" if trials is not None else "")
            failed = failed + 1 if state == TrialState.FAIL else 0
            if failed == FAILED_IN_A_ROW:
                raise StudyError(
                    f"{self.folder.path}: {failed} trials in a row have failed, the last one with: "
                    f"{self._ended()[-1].reason}"
                )
        self._write()
        return self._ended()

    def _check_unchanged(self) -> None:
        """Notes in a new study's journal what it is about.

        Raises:
            StudyError: its files say something else by now.
        """
        config = self.folder.config.to_dict()
        space = {key: distribution_to_json(one) for key, one in self.distributions.items()}
        before = self.study.user_attrs
        if _SPACE not in before:  # the last to be noted
            self.study.set_user_attr(_CONFIG, config)
            self.study.set_user_attr(_SPACE, space)
            return
        changed = differences(self.folder.config, before[_CONFIG], "the study")
        if space != before[_SPACE]:
            changed.append(f"another space in {SPACE}")
        if changed:
            raise StudyError(
                f"{self.folder.path}: has changed since its trials were made, whose scores are of "
                f"{CONFIG} and {SPACE} as they were: {'; '.join(changed)}. Put them back, or begin "
                "another study"
            )

    def _pick_up(self) -> None:
        """Trials that were broken off go on first; a new study begins with the config as it is."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)  # its process was killed
        attempts = self._attempts()
        for number, trial in attempts.items():
            if _is_broken_off(trial):
                # Those that it was to have, too, where it was killed while they were noted.
                values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
                whole = values.keys() == self.distributions.keys()
                self.study.enqueue_trial(values if whole else {}, user_attrs={_NUMBER: number})
        if attempts:
            return
        own = {key: getattr(self.folder.config, key) for key in self.folder.space}
        outside = [key for key, value in own.items() if not self.folder.space[key].holds(value)]
        if outside:
            shown = ", ".join(f"{key} {own[key]}" for key in outside)
            self.say(f"the config as it is will not be tried: the space leaves out {shown}")
            return
        texts = {key: _encoded(value) for key, value in own.items()}
        self.study.enqueue_trial(texts, user_attrs={_NUMBER: 1})

    def _attempts(self) -> dict[int, FrozenTrial]:
        """Number of a trial, from 1 → Optuna's latest trial for it. One that was broken off has
        several."""
        found = {}
        for trial in self.study.get_trials(deepcopy=False):
            if _NUMBER in trial.user_attrs:  # else it was killed before it had its values
                found[int(trial.user_attrs[_NUMBER])] = trial
        return found

    def _ended(self) -> list[TrialResult]:
        return [
            TrialResult(
                number,
                self.folder.run(number),
                _STATES[trial.state],
                self._values(trial),
                tuple(score for _, score in sorted(trial.intermediate_values.items())),
                trial.user_attrs.get(_REASON, ""),
            )
            for number, trial in sorted(self._attempts().items())
            if trial.state.is_finished() and not _is_broken_off(trial)
        ]

    def _values(self, trial: FrozenTrial | optuna.Trial) -> dict[str, Any]:
        return {
            key: _decoded(trial.params[key], dimension)
            for key, dimension in self.folder.space.items()
        }

    def _try_one(self, of: str) -> TrialState:
        attempts = self._attempts()
        waiting = [n for n, trial in attempts.items() if trial.state == TrialState.WAITING]
        number = waiting[0] if waiting else len(attempts) + 1
        seed = np.random.SeedSequence([self.folder.config.seed, number]).generate_state(1)[0]
        self.study.sampler = optuna.samplers.TPESampler(seed=int(seed))
        trial = self.study.ask(self.distributions)
        try:
            trial.set_user_attr(_NUMBER, number)
            values = self._values(trial)
            shown = ", ".join(f"{key} {short(value)}" for key, value in values.items())
            self.say(f"trial {number}{of}: {shown}")
            interruption = Interruption()
            state = self._train(trial, number, values, interruption)
        except BaseException:  # a signal, a full disk, a bug: it goes on when the search does
            # Where that cannot be noted, the next call sees a trial that nobody is running.
            with suppress(OSError):
                self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            raise
        self._free_memory()
        self._write()
        if interruption.signal is not None:  # it came too late to end the training
            interruption.end()
        return state

    def _train(
        self,
        trial: optuna.Trial,
        number: int,
        values: dict[str, Any],
        interruption: Interruption,
    ) -> TrialState:
        def epoch_ended(epoch: int, score: float) -> None:
            if epoch == 1:
                self.folder.check_people(number)
            trial.report(score, epoch)
            if epoch < config.epochs and trial.should_prune():
                raise optuna.TrialPruned

        try:
            config = self.folder.trial_config(number, values)
            run = self.folder.run(number)
            more: dict[str, Any] = {"epoch_ended": epoch_ended, "interruption": interruption}
            if find_checkpoint(run / "last.pt") is not None:
                kept = {*MACHINE_FIELDS, "data_dir", "model_dir", "fixes"}
                changes = {key: value for key, value in config.to_dict().items() if key in kept}
                result = resume(run, changes, self.say, **more)
            else:
                shutil.rmtree(run, ignore_errors=True)  # killed before there was anything to keep
                result = train(config, self.say, **more)
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
            self.say(f"trial {number}: pruned, as it is behind the others")
            return TrialState.PRUNED
        except FAILURES as error:
            trial.set_user_attr(_REASON, " ".join((str(error) or type(error).__name__).split()))
            self.study.tell(trial, state=TrialState.FAIL)
            self.say(f"trial {number}: failed: {error}")
            return TrialState.FAIL
        self.study.tell(trial, result.best_score)
        best = best_of(self._ended())
        beside = f"; best so far: {best.score:.4f}, trial {best.number}" if best else ""
        self.say(f"trial {number}: macro F1 {result.best_score:.4f}{beside}")
        return TrialState.COMPLETE

    def _write(self) -> None:
        ended = self._ended()
        write_results(self.folder, ended, importances(self.study))
        best = best_of(ended)
        if self.only_best and best is not None:
            for trial in ended:
                if trial.number != best.number:
                    for path in trial.run.glob("*.pt*"):
                        path.unlink()

    @staticmethod
    def _free_memory() -> None:
        """What the last network held, before the next one asks."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """A space in Optuna's terms."""
    found: dict[str, BaseDistribution] = {}
    for key, dimension in space.items():
        if not isinstance(dimension, Range):
            found[key] = CategoricalDistribution([_encoded(value) for value in dimension.values])
        elif dimension.whole:
            found[key] = IntDistribution(
                int(dimension.low),
                int(dimension.high),
                log=dimension.log,
                step=int(dimension.step or 1),
            )
        else:
            found[key] = FloatDistribution(
                dimension.low, dimension.high, log=dimension.log, step=dimension.step
            )
    return found


def create_pruner(name: str, epochs: int) -> BasePruner:
    """`median`: ends a trial whose best score is below the median of the others' scores at its
    epoch; `hyperband`: gives many trials few epochs and the better ones more."""
    if name == "median":
        return MedianPruner(n_startup_trials=FEW_TRIALS, n_warmup_steps=epochs // 4)
    if name == "hyperband":
        return HyperbandPruner(min_resource=max(1, epochs // 9), max_resource=epochs)
    return NopPruner()


def open_study(journal: Path, pruner: BasePruner) -> optuna.Study:
    """
    Raises:
        StudyError: a damaged journal.
    """
    _cut_torn_line(journal)
    # One process at a time is in a study, and a lock of Optuna's would outlive SIGKILL.
    backend = JournalFileBackend(str(journal), lock_obj=_NoLock(str(journal)))
    with _reading(journal):
        return optuna.create_study(
            study_name="search",
            storage=JournalStorage(backend),
            pruner=pruner,
            direction="maximize",
            load_if_exists=True,
        )


def importances(study: optuna.Study) -> dict[str, float]:
    """How much of the difference between good trials and the others each key explains; the sum is
    1. Nothing where there are too few trials to say."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.value for trial in complete}) < FEW_TRIALS:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is new, and that it leaves pruned trials out
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


class _NoLock(JournalFileOpenLock):
    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


@contextmanager
def _reading(journal: Path) -> Iterator[None]:
    """
    Raises:
        StudyError: the block found what no journal holds.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise StudyError(
            f"{journal}: damaged: {reason}. Its trials' runs are whole; begin another study"
        ) from error


def _cut_torn_line(journal: Path) -> None:
    """A full disk or a power failure may leave half a line at the end, and what is appended to it
    could never be read."""
    if journal.is_file() and not (content := journal.read_bytes()).endswith(b"\n"):
        write_atomic(journal, content[: content.rfind(b"\n") + 1])


def _is_broken_off(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and _REASON not in trial.user_attrs


def _encoded(value: Any) -> Any:
    """Optuna's choices are plain values."""
    return text_of(value) if isinstance(value, tuple) else value


def _decoded(value: Any, dimension: Range | Choices) -> Any:
    if isinstance(dimension, Range):
        # Three steps of 0.1 are 0.30000000000000004 to Optuna.
        return value if dimension.step is None else round(value, 12)
    return next(own for own in dimension.values if _encoded(own) == value)
