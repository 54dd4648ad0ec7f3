"""Whether a provider answers as the CPU does, where a file was compared with PyTorch.

The comparison at the export proves a file on the machine that made it. On a GPU other code
computes, and an operator that is wrong there would label every picture wrongly, without a word. So
a few made pictures go through the file on both before it labels.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from maskcls.labels import softmax
from maskcls.runtime.session import LOGITS, OnnxFile, open_session, run_session

COUNT = 3
"""Pictures in the batch: what goes wrong from the second one on shows, too."""
SEEDS = 20
"""Batches that are made until one has three different answers, so that mixing them up shows."""
APART = {"fp32": 0.02, "fp16": 0.05, "int8": 0.05}
"""Precision → how far probabilities may be apart. The resize may round a pixel otherwise."""


def disagreement(file: OnnxFile, session: Any, threads: int | None) -> str:
    """What is wrong with the answers of a session on another provider; empty where they are the
    CPU's. `threads`: of the CPU, as of `open_session`.

    Raises:
        ProviderError: the session cannot answer at all.
    """
    allowed = APART[file.manifest.precision]
    cpu = open_session(file.content, file.path, "cpu", threads)
    for seed in range(SEEDS):
        pictures = _pictures(file, seed)
        expected = _probabilities(file, cpu, pictures)
        if _least_difference(expected) > 2 * allowed:
            break
    apart = np.abs(_probabilities(file, session, pictures) - expected).max()
    if apart <= allowed:  # not so where one of them is no number
        return ""
    return (
        f"{session.get_providers()[0]} answers otherwise than the CPU, on which {file.path} was "
        f"compared with PyTorch: probabilities of {COUNT} made pictures are up to {apart:.2g} apart"
    )


def _least_difference(answers: np.ndarray) -> float:
    """Between two of the pictures (COUNT, C), in the class that tells them apart best."""
    pairs = itertools.combinations(answers, 2)
    return min(float(np.abs(one - other).max()) for one, other in pairs)


def _pictures(file: OnnxFile, seed: int) -> np.ndarray:
    """Coloured patches, uint8 (COUNT, H, W, 3): of a network's size, or more than twice that where
    the file resizes."""
    specs = [network.preprocess for network in file.manifest.networks]
    if file.manifest.kind == "network":
        height, width = specs[0].size
    else:
        height, width = file.manifest.input_size or (
            2 * max(spec.height for spec in specs) + 1,
            2 * max(spec.width for spec in specs) + 1,
        )
    patches = np.random.default_rng(seed).integers(0, 256, (COUNT, 8, 6, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 6 // width
    pictures: np.ndarray = patches[:, rows][:, :, columns]
    return pictures


def _probabilities(file: OnnxFile, session: Any, pictures: np.ndarray) -> np.ndarray:
    if file.manifest.kind != "network":
        return run_session(session, "class_prob", pictures)
    pixels = file.manifest.networks[0].preprocess.normalise(pictures)
    return softmax(run_session(session, LOGITS, pixels))
