"""Whether a provider answers as the CPU does, where a file was compared with PyTorch.

The comparison at the export proves a file on the machine that made it. On a GPU other code
computes, and an operator that is wrong there would label every picture wrongly, without a word. So
a few made pictures go through the file on both before it labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maskcls.labels import softmax
from maskcls.runtime.session import LOGITS, OnnxFile, open_session, run_session

COUNT = 3
"""Pictures in the batch: what goes wrong from the second one on shows, too."""
APART = {"fp32": 0.02, "fp16": 0.05, "int8": 0.05}
"""Precision → how far probabilities may be apart. The resize may round a pixel otherwise."""


def disagreement(file: OnnxFile, session: Any) -> str:
    """What is wrong with the answers of a session on another provider; empty where they are the
    CPU's.

    Raises:
        ProviderError: the session cannot answer at all.
    """
    pictures = _pictures(file)
    cpu = open_session(file.content, file.path, "cpu")
    answer, expected = (_probabilities(file, one, pictures) for one in (session, cpu))
    apart = np.abs(answer - expected).max()
    if apart <= APART[file.manifest.precision]:  # not so where one of them is no number
        return ""
    return (
        f"{session.get_providers()[0]} answers otherwise than the CPU, on which {file.path} was "
        f"compared with PyTorch: probabilities of {COUNT} made pictures are up to {apart:.2g} apart"
    )


def _pictures(file: OnnxFile) -> np.ndarray:
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
    patches = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 6, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 6 // width
    pictures: np.ndarray = patches[:, rows][:, :, columns]
    return pictures


def _probabilities(file: OnnxFile, session: Any, pictures: np.ndarray) -> np.ndarray:
    if file.manifest.kind != "network":
        return run_session(session, "class_prob", pictures)
    pixels = file.manifest.networks[0].preprocess.normalise(pictures)
    return softmax(run_session(session, LOGITS, pixels))
