"""Export trained networks to ONNX.

python export/to_onnx.py --model-dir runs --out onnx
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from maskcls.commands._run import env_default, env_help, guarded
from maskcls.errors import ConfigError
from maskcls.manifest import PRECISIONS

EPILOG = """\
Writes mask_gender.onnx and age.onnx (normalised pixels → logits) and maskcls.onnx, which takes raw
pixels and answers labels: crop, resize, normalisation and both networks are in it. Before a file
gets its name, real pictures go through PyTorch and through the ONNX files; where they do not answer
alike the command ends with exit code 1 and leaves parity.json only. model_card.md says what the
files are for, how good they are and for whom, and what they must not be used for.

examples:
  maskcls-export --model-dir runs --out onnx                    the newest run of each branch
  maskcls-export --mask-gender runs/mask_gender/exp --age runs/age/exp2 --out onnx
  maskcls-export --age runs/age/exp --out onnx                  one network alone
  maskcls-export --model-dir runs --out onnx --parity-images photos
  maskcls-export --model-dir runs --out onnx-int8 --precision int8
  maskcls-export --model-dir runs --out onnx --triton           and a model repository for Triton
"""


def build_parser() -> argparse.ArgumentParser:
    """The options of `maskcls-export`."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Convert trained networks to ONNX, fuse them, and compare with PyTorch.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model-dir",
        type=Path,
        metavar="DIR",
        help=f"folder of the runs, of which the newest are taken; {env_help('SM_MODEL_DIR')}",
    )
    parser.add_argument(
        "--mask-gender", type=Path, metavar="RUN", help="run folder or checkpoint of mask_gender"
    )
    parser.add_argument("--age", type=Path, metavar="RUN", help="run folder or checkpoint of age")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where files go")
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=PRECISIONS,
        help="fp16 is for CUDA, int8 for CPUs, calibrated on training pictures (default fp32)",
    )
    parser.add_argument(
        "--input-size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="maskcls.onnx takes pictures of this size only; default: any size",
    )
    parser.add_argument(
        "--parity-images",
        type=Path,
        metavar="DIR",
        help="pictures to compare on; default: those of the people who validated the run",
    )
    parser.add_argument(
        "--parity-pictures",
        type=int,
        default=1024,
        metavar="N",
        help="so many of them, drawn at random (default 1024)",
    )
    parser.add_argument(
        "--max-f1-drop",
        type=float,
        default=None,
        metavar="X",
        help="macro F1 that the export may cost (default 0.005)",
    )
    parser.add_argument(
        "--triton",
        action="store_true",
        help="write DIR/model_repository for NVIDIA's Triton Inference Server, too: maskcls.onnx, "
        "or the one network, with its config.pbtxt",
    )
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    if args.parity_pictures < 1:
        raise ConfigError(f"--parity-pictures {args.parity_pictures}: must be 1 or more")
    if args.max_f1_drop is not None and not 0 <= args.max_f1_drop <= 1:
        raise ConfigError(f"--max-f1-drop {args.max_f1_drop}: must be from 0 to 1")
    if args.input_size and not all(32 <= side <= 2048 for side in args.input_size):
        raise ConfigError(f"--input-size {args.input_size}: sides must be from 32 to 2048 pixels")
    chosen = [path for path in (args.mask_gender, args.age) if path is not None]
    if chosen and args.model_dir is not None:
        raise ConfigError("give --model-dir, or --mask-gender and --age, not both")
    if not chosen:
        folder = args.model_dir or env_default("SM_MODEL_DIR")
        if folder is None:
            raise ConfigError("--model-dir is missing; give it or runs, or set $SM_MODEL_DIR")
        chosen = [folder]

    from maskcls.classifier import find_checkpoints
    from maskcls.onnx import export
    from maskcls.onnx.parity import MAX_F1_DROP

    _require_task("--mask-gender", args.mask_gender, "mask_gender")
    _require_task("--age", args.age, "age")
    result = export(
        find_checkpoints(chosen),
        args.out,
        precision=args.precision,
        input_size=tuple(args.input_size) if args.input_size else None,
        pictures=args.parity_images,
        max_pictures=args.parity_pictures,
        max_f1_drop=MAX_F1_DROP if args.max_f1_drop is None else args.max_f1_drop,
        triton=args.triton,
    )
    parity = result.parity
    worst = max(found.max_logit for found in parity.networks.values())
    print(
        f"parity: passed; {parity.label_flips} of {parity.pictures} labels differ, "
        f"|Δ logit| ≤ {worst:.1e}, macro F1 {parity.f1_pytorch:.4f} → {parity.f1_onnx:.4f} "
        f"→ {args.out / 'parity.json'}"
    )
    for file in result.files:
        print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
    print(f"{result.card}: what the files are for, and how good they are")
    if result.repository is not None:
        print(f"{result.repository}: for tritonserver --model-repository")
    if len(result.files) > 1:
        print(f"next: maskcls-infer --model {result.files[-1]} --images DIR --out output.csv")
    return 0


def _require_task(option: str, run: Path | None, task: str) -> None:
    """
    Raises:
        ConfigError: the run of that option is of another task, or there are several.
    """
    if run is None:
        return
    from maskcls.checkpoints import read_manifest
    from maskcls.classifier import find_checkpoints

    found = [read_manifest(path).task for path in find_checkpoints([run])]
    if found != [task]:
        raise ConfigError(
            f"{option} {run}: holds {' and '.join(found)}, not one run of {task}; name its run "
            "folder, or give --model-dir"
        )
