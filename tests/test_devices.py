"""Where PyTorch computes."""

from __future__ import annotations

import pytest
import torch

from maskcls.devices import Precision, resolve_device, resolve_precision
from maskcls.errors import ProviderError

CPU = torch.device("cpu")
FP32 = Precision("cpu", torch.float32)


@pytest.mark.parametrize(
    ("name", "message"), [("gpu0", "no such device"), ("meta", "only cpu and cuda")]
)
def test_a_device_that_is_none(name: str, message: str) -> None:
    with pytest.raises(ProviderError, match=message) as caught:
        resolve_device(name)
    assert repr(name) in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none() -> None:
    assert resolve_device("auto") == CPU
    for name in ("cuda", "cuda:1"):
        with pytest.raises(ProviderError, match=f"{name}: torch .* finds no CUDA"):
            resolve_device(name)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ProviderError, match="--device cuda:2: there are cuda:0 to cuda:1 here"):
        resolve_device("cuda:2")


def test_precisions() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_precision("fp32", CPU) == FP32
    assert resolve_precision("bf16", CPU).dtype == torch.bfloat16
    torch.backends.cudnn.allow_tf32 = True
    assert resolve_device("cpu") == CPU
    assert not torch.backends.cudnn.allow_tf32  # of a GPU, float32 is float32
    assert resolve_precision("auto", CPU).dtype in (torch.float32, torch.bfloat16)
    assert resolve_precision("fp16", torch.device("cuda")).dtype == torch.float16
    with pytest.raises(ProviderError, match="fp16 needs CUDA"):
        resolve_precision("fp16", CPU)
