"""What this machine has, and what is missing.

python cli/doctor.py
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from maskcls.commands._run import guarded

PACKAGES = (
    "maskcls",
    "torch",
    "torchvision",
    "pytorch-ignite",
    "efficientnet_pytorch",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "numpy",
    "pillow",
    "simplejpeg",
    "pyarrow",
    "optuna",
)
NEEDED_FOR = {
    "torch": "training and exporting: pip install 'maskcls[train]'",
    "onnx": "labelling with ONNX files: pip install 'maskcls[runtime]'",
    "simplejpeg": "decoding JPEGs faster: pip install simplejpeg",
    "pyarrow": "Parquet: pip install 'maskcls[parquet]'",
    "optuna": "a search for settings: pip install 'maskcls[search]'",
}


def build_parser() -> argparse.ArgumentParser:
    """`maskcls-doctor` has no options."""
    return argparse.ArgumentParser(
        allow_abbrev=False,
        description="Show versions, devices, the execution providers that really load, and what to "
        "install. Ends with 1 where pictures cannot be labelled at all.",
    )


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 where pictures can be labelled, else 1."""
    build_parser().parse_args(argv)
    print(f"python {platform.python_version()}, {platform.system()} {platform.machine()}")
    from maskcls.runtime.engines import usable_cores

    print(f"cores: {usable_cores()}")
    print("\npackages")
    for package in PACKAGES:
        found = _version(package)
        hint = NEEDED_FOR.get(package, "")
        if found or hint:
            print(f"  {package:22}{found or f'not installed; needed for {hint}'}")
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        print(
            "  onnxruntime and onnxruntime-gpu are one module, and the one installed later has "
            "overwritten the other: uninstall both, then install maskcls[runtime-gpu], or "
            "maskcls[runtime] for a CPU alone"
        )
    print("\ndecoders")
    for line in _decoders():
        print(f"  {line}")
    print("\nonnxruntime providers")
    usable = _providers()
    print("\npytorch devices")
    torch_works = _torch()
    return 0 if usable or torch_works else 1


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _decoders() -> list[str]:
    from PIL import features

    from maskcls.images import FORMATS

    turbo = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "plain libjpeg: slower"
    webp = "" if features.check("webp") else "; no WebP in this Pillow"
    return [f"Pillow: {', '.join(FORMATS)}; JPEG by {turbo}{webp}"]


def _providers() -> bool:
    """Prints a line each; whether one works."""
    from maskcls.errors import MissingExtraError
    from maskcls.runtime.session import PROVIDERS, why_not

    try:
        reasons = {provider: why_not(provider) for provider in PROVIDERS}
    except MissingExtraError as error:
        print(f"  none: {error}")
        return False
    for provider, reason in reasons.items():
        print(f"  {provider:10}{reason and f'no: {reason}' or 'works'}")
    return True


def _torch() -> bool:
    """Prints a line each; whether PyTorch is there."""
    try:
        import torch
    except ImportError:
        print("  none: PyTorch is not installed")
        return False
    print(f"  cpu       works, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        print(f"  cuda      no: torch {torch.__version__} finds no CUDA device")
    for index in range(torch.cuda.device_count()):
        print(f"  cuda:{index}    {torch.cuda.get_device_name(index)}")
    return True


if __name__ == "__main__":
    raise SystemExit(main())
