"""Training on a GPU, in each precision. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maskcls.config import resolve
from maskcls.data.sample import make_sample
from maskcls.devices import resolve_precision
from maskcls.models import load_model
from maskcls.training import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
def test_cuda_trains_in_each_precision(tmp_path: Path, precision: str) -> None:
    sample = make_sample(tmp_path / "sample", people=12, eval_people=6, progress=False)
    flags = {
        "data_dir": (str(sample / "train"),),
        "model_dir": str(tmp_path / "runs"),
        "cache": str(tmp_path / "cache"),
        "device": "cuda",
        "precision": precision,
        "weights": "none",
        "height": 32,
        "width": 32,
        "epochs": 2,
        "batch_size": 16,
    }
    result = train(resolve("mask_gender", "scratch", flags=flags), say=lambda _: None)
    model, manifest = load_model(result.folder, "cuda")
    assert manifest.config["precision"] == resolve_precision(precision, torch.device("cuda")).name
    logits = model(torch.zeros(2, 3, 32, 32, device="cuda"))
    assert torch.isfinite(logits).all()
    assert result.epochs == 2
