"""Checkpoints that know more people or pictures than they were trained on."""

from __future__ import annotations

from pathlib import Path

import torch

from maskcls.checkpoints import read_checkpoint, save_checkpoint
from maskcls.provenance import fingerprint


def add_seen(checkpoint: Path, *names: str) -> None:
    """As if these people, or pictures by their digests, had been in its training."""
    content = dict(read_checkpoint(checkpoint))
    more = torch.tensor([fingerprint(name) for name in names], dtype=torch.int64)
    content["seen"] = torch.cat([content["seen"], more])
    save_checkpoint(content, checkpoint)
