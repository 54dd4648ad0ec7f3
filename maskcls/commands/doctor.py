"""What this machine has, and what is missing.

python cli/doctor.py
"""

from __future__ import annotations

import argparse
import importlib
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
TRAINING = "training and exporting: pip install 'maskcls[train]'"
NEEDED_FOR = {
    "torch": TRAINING,
    "torchvision": TRAINING,
    "pytorch-ignite": TRAINING,
    "efficientnet_pytorch": TRAINING,
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
        if _version("onnxruntime-gpu"):  # or the one for CPUs would take its place
            hint = hint.replace("maskcls[runtime]", "maskcls[runtime-gpu]")
        if found or hint:
            print(f"  {package:22}{found or f'not installed; needed for {hint}'}")
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        print(
            "  onnxruntime and onnxruntime-gpu are one module, and the one installed later has "
            "overwritten the other: uninstall both, then install maskcls[runtime-gpu], or "
            "maskcls[runtime] for a CPU alone"
        )
    print("\ndecoders")
    print(f"  {_decoder()}")
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


def _decoder() -> str:
    from PIL import features

    from maskcls.images import FORMATS

    turbo = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "plain libjpeg: slower"
    webp = "" if features.check("webp") else "; no WebP in this Pillow"
    return f"Pillow: {', '.join(FORMATS)}; JPEG by {turbo}{webp}"


def _providers() -> bool:
    """Prints a line each; whether one works."""
    from maskcls.runtime.session import PROVIDERS, why_not

    if reason := _why_no_import("onnxruntime", "onnx"):
        print(f"  none: {reason}")
        return False
    for provider in PROVIDERS:
        reason = why_not(provider)
        print(f"  {provider:10}{reason and f'no: {reason}' or 'works'}")
    return True


def _torch() -> bool:
    """Prints a line each; whether checkpoints can label."""
    if reason := _why_no_import("torch", "torchvision", "efficientnet_pytorch"):
        print(f"  none: {reason}")
        return False
    import torch

    print(f"  cpu       works, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        print(f"  cuda      no: torch {torch.__version__} finds no CUDA device")
    for index in range(torch.cuda.device_count()):
        print(f"  cuda:{index}    {torch.cuda.get_device_name(index)}")
    return True


def _why_no_import(*modules: str) -> str:
    """Empty where all of them can be imported."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            return f"{name} is not installed" if error.name == name else f"{name}: {error}"
        except Exception as error:  # such as a library of CUDA that is missing
            return f"{name} cannot be imported: {' '.join(str(error).split())[:300]}"
    return ""
