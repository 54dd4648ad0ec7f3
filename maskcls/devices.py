"""Where PyTorch computes, and in what numbers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch

from maskcls.config import TrainConfig
from maskcls.errors import ProviderError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """What autocast computes in, on which kind of device."""

    device: str  # cpu or cuda
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """As `--precision` has it."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass; float32 casts nothing."""
        return torch.autocast(
            self.device,
            self.dtype if self.dtype != torch.float32 else torch.bfloat16,
            enabled=self.dtype != torch.float32,
        )


def resolve_precision(name: str, device: torch.device) -> Precision:
    """`auto`: bfloat16 where the device computes in it, else float32.

    Raises:
        ProviderError: fp16 on a CPU, which has no use for it.
    """
    if name == "fp16" and device.type == "cpu":
        raise ProviderError("--precision fp16 needs CUDA; on a CPU take bf16, fp32 or auto")
    if name == "auto":
        name = "bf16" if _has_bf16(device) else "fp32"
    return Precision(device.type, DTYPES[name])


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Emulated bfloat16 is slower than float32. Older torch does not tell.
    tell: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return bool(tell().get("avx512_bf16") or tell().get("amx_bf16"))


def resolve_device(name: str, option: str = "--device") -> torch.device:
    """`auto`: CUDA where it works, else the CPU. `option`: how messages call the choice.

    Raises:
        ProviderError: asked for CUDA and it does not work.
    """
    # float32 is float32, as in the ONNX files, and not TF32 with its 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ProviderError(
            f"{option} {name!r}: no such device; one such as auto, cpu, cuda or cuda:1"
        ) from None
    if device.type not in ("cpu", "cuda"):
        raise ProviderError(f"{option} {name!r}: only cpu and cuda are supported")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and not found:
        raise ProviderError(f"{option} {name}: torch {torch.__version__} finds no CUDA device here")
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ProviderError(f"{option} {name}: there are cuda:0 to cuda:{found - 1} here")
    return device


def settled(config: TrainConfig) -> TrainConfig:
    """With the precision that `auto` comes to here, so that trainings that belong together all have
    the same, on whichever machine they go on.

    Raises:
        ProviderError: as `resolve_device` and `resolve_precision`.
    """
    precision = resolve_precision(config.precision, resolve_device(config.device))
    return replace(config, precision=precision.name)
