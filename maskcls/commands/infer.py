"""Label a folder of pictures.

python cli/infer.py --model runs --images data/eval --out output.csv
SM_CHANNEL_EVAL=data/eval SM_CHANNEL_MODEL=runs SM_OUTPUT_DATA_DIR=out python cli/infer.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from maskcls.commands._run import env_default, env_help, guarded
from maskcls.errors import ConfigError

if TYPE_CHECKING:
    from maskcls.runtime import LabellingResult, Pictures
    from maskcls.runtime.shards import Shard

PROVIDERS = ("auto", "cuda", "tensorrt", "cpu")
OUTPUT_FILE = "output.csv"
CPU_BATCH, GPU_BATCH = 16, 64
"""Pictures at once. On a CPU more of them do not fit its cache; on a GPU fewer leave it idle."""
SHOWN_ERRORS = 5

EPILOG = """\
The answer is ImageID,ans with ans = mask * 6 + gender * 3 + age, 0 to 17. With an info.csv its rows
and their order are kept; without one, every picture under the folder is labelled. A picture that
cannot be read gets an empty ans and its reason in a column `error`, and the job goes on.

A job that was interrupted leaves its finished parts beside the output; --resume goes on from them.

Several machines label one list with --shard 1/4 to --shard 4/4, each to an output of its own. Bring
the outputs together, each with the .json beside it, and --merge joins them into the file that one
machine would have written.

With a Ray cluster, --engine ray does all that by itself, and goes on when a node dies. Each worker
has --lanes CPUs (default 1), or one GPU. All machines see model, pictures and output under the same
paths. The output is a folder of Parquet files; --resume goes on after those that are there, and
--merge makes one file of them.

examples:
  maskcls-infer --model onnx/maskcls.onnx --images photos --out labels.csv
  maskcls-infer --model runs --images data/eval --out output.csv
  maskcls-infer --model runs/mask_gender/exp runs/age/exp --images photos --out labels.csv
  maskcls-infer --model runs --images list.txt --out labels.csv --probabilities
  maskcls-infer --model onnx/maskcls.onnx --images shards/ --out labels.parquet
  maskcls-infer --model onnx/maskcls.onnx --images list.txt --shard 1/2 --out part-1.csv
  maskcls-infer --merge part-1.csv part-2.csv --out labels.csv
  maskcls-infer --model onnx/maskcls.onnx --images shards/ --engine ray --out labels
  maskcls-infer --merge labels --out labels.parquet
"""


def build_parser() -> argparse.ArgumentParser:
    """The options of `maskcls-infer`."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Label pictures with mask, gender and age group.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="maskcls.onnx or single networks of maskcls-export; or the model folder of "
        "maskcls-train (its newest runs), run folders or checkpoints; "
        + env_help("SM_CHANNEL_MODEL"),
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR|CSV|TXT|PARQUET|TAR",
        help="pictures: a folder; a list of paths; a Parquet table of paths or of pictures; a tar "
        f"file of pictures (WebDataset), or a folder of them; {env_help('SM_CHANNEL_EVAL')}",
    )
    parser.add_argument(
        "--info",
        type=Path,
        metavar="FILE",
        help="info.csv whose rows are labelled; default: the one in the folder, if any",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f".csv or .parquet; {env_help('SM_OUTPUT_DATA_DIR', OUTPUT_FILE)}",
    )
    parser.add_argument(
        "--provider", default="auto", choices=PROVIDERS, help="where to compute (default auto)"
    )
    parser.add_argument(
        "--batch-size",
        type=_batch_size,
        default="auto",
        metavar="N",
        help=f"pictures at once; auto, the default: {CPU_BATCH} on a CPU, {GPU_BATCH} on a GPU",
    )
    parser.add_argument(
        "--workers", type=_positive, default=2, metavar="N", help="threads that decode (default 2)"
    )
    parser.add_argument(
        "--lanes",
        type=_positive,
        metavar="N",
        help="ONNX: batches at once, which share the cores; default: 1, or what a large "
        "job (on two cores, of 2,000 pictures) has found to be fastest here",
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="a column per attribute and class, too"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with a job that was interrupted, to the same file",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="label the I-th of N parts of the pictures only, 1/N to N/N; --merge joins them",
    )
    parser.add_argument(
        "--merge",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="label nothing, but join into --out the outputs of all shards, or the folder that "
        "--engine ray has filled",
    )
    parser.add_argument(
        "--engine",
        default="local",
        choices=("local", "ray"),
        help="ray: label on a Ray cluster, into a folder of Parquet files (extra `ray`)",
    )
    parser.add_argument(
        "--partition-size",
        type=_positive,
        metavar="N",
        help="Ray: pictures per file, about (default 2,048)",
    )
    parser.add_argument(
        "--escape-formulas",
        action="store_true",
        help="in a CSV, put ' before names that a spreadsheet would run as a formula, such as "
        "=1+1.jpg; they are not the files' names any more",
    )
    parser.add_argument(
        "--strict", action="store_true", help="a picture that cannot be read ends the job"
    )
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    if args.merge:
        return _merge(args)
    models = args.model or _from_environment("--model", "SM_CHANNEL_MODEL")
    [images] = [args.images] if args.images else _from_environment("--images", "SM_CHANNEL_EVAL")
    if args.engine == "ray":
        return _label_on_ray(args, models, images)
    if args.partition_size is not None:
        raise ConfigError("--partition-size: is of --engine ray; without it there is one file")
    args.out = _output(args.out)

    from maskcls.api import open_engine
    from maskcls.runtime import inference, open_pictures
    from maskcls.runtime.tuning import tuned

    sources = open_pictures(images, args.info)
    if args.info is None:
        _tell_ignored(images, sources)
    args.out.parent.mkdir(parents=True, exist_ok=True)  # or fail before the work, not after it
    engine = open_engine(models, args.provider, args.lanes or 1)
    print(f"computing with {engine.provider}: {', '.join(file.path for file in engine.models)}")
    batch_size = _resolve_batch_size(args.batch_size, engine.provider)
    if args.lanes is None:
        own = sources[args.shard.bounds(len(sources), batch_size)] if args.shard else sources
        engine = tuned(engine, own, batch_size, args.workers)
    result = inference(
        engine,
        sources,
        args.out,
        batch_size=batch_size,
        workers=args.workers,
        probabilities=args.probabilities,
        strict=args.strict,
        resume=args.resume,
        escape_formulas=args.escape_formulas,
        shard=args.shard,
    )
    _tell(result)
    if args.shard:
        print(f"this is shard {args.shard}; --merge joins all {args.shard.count} shards")
    return 0


def _label_on_ray(args: argparse.Namespace, models: Sequence[Path], images: Path) -> int:
    if args.shard:
        raise ConfigError("--shard: Ray divides the work by itself; leave it out")
    if args.escape_formulas:
        raise ConfigError("--escape-formulas: is for CSV; --engine ray writes Parquet")
    if args.out is None or args.out.suffix:
        raise ConfigError("--engine ray writes a folder of Parquet files: --out labels")

    from maskcls.api import open_engine
    from maskcls.runtime import open_pictures
    from maskcls.runtime.cluster import PARTITION, connected, label_on_cluster

    sources = open_pictures(images, args.info)
    if args.info is None:
        _tell_ignored(images, sources)
    engine = open_engine(models, "cpu")  # or fail before the cluster does
    lanes = args.lanes or 1
    with connected("--engine ray") as cluster:
        # An actor with a GPU finds out whether it works there: onnxruntime may be without CUDA.
        provider = args.provider if cluster.gpus or args.provider != "auto" else "cpu"
        gpu = provider != "cpu"
        print(
            f"Ray: nodes: {len(cluster.nodes)}, CPUs: {cluster.cpus}, GPUs: {cluster.gpus}; "
            f"computing on {'cuda where it works' if provider == 'auto' else provider}"
        )
        cpus = args.workers if gpu else lanes
        result = label_on_cluster(
            cluster,
            partial(open_engine, models, provider, lanes, cpus),
            engine,
            sources,
            args.out,
            batch_size=_resolve_batch_size(args.batch_size, provider),
            workers=args.workers,
            probabilities=args.probabilities,
            strict=args.strict,
            resume=args.resume,
            partition_size=args.partition_size or PARTITION,
            cpus=cpus,
            gpus=int(gpu),
        )
    _tell(result)
    print(f"for one file: --merge {result.out} --out {result.out}.parquet")
    return 0


def _merge(args: argparse.Namespace) -> int:
    plain = build_parser().parse_args([])
    wrong = [
        "--" + name.replace("_", "-")
        for name, value in vars(args).items()
        if name not in ("merge", "out") and value != getattr(plain, name)
    ]
    if wrong:
        raise ConfigError(f"--merge labels nothing: leave {' and '.join(wrong)} out")

    from maskcls.runtime import merge

    _tell(merge(args.merge, _output(args.out)))
    return 0


def _output(out: Path | None) -> Path:
    """
    Raises:
        ConfigError: it was not given, or ends in something else than is written.
    """
    if out is None:
        [folder] = _from_environment("--out", "SM_OUTPUT_DATA_DIR")
        out = folder / OUTPUT_FILE
    if out.suffix.lower() not in (".csv", ".parquet"):
        raise ConfigError(f"--out {out}: name it .csv or .parquet")
    return out


def _tell_ignored(images: Path, sources: Pictures) -> None:
    """Tar files beside the pictures may hold the same ones, or others."""
    from maskcls.runtime.packed import PackedPictures, packed_files

    if not images.is_dir() or isinstance(sources, PackedPictures):
        return
    tars = [file for file in packed_files(images) if file.suffix.lower() == ".tar"]
    if tars:
        print(
            f"note: {', '.join(file.name for file in tars)} in {images} not read, as there are "
            "pictures outside of tar files; to label what a tar file holds, give it as --images",
            file=sys.stderr,
        )


def _tell(result: LabellingResult) -> None:
    print(f"labelled {result.pictures - len(result.errors)} pictures → {result.out}")
    if result.errors:
        shown = "\n  ".join(result.errors[:SHOWN_ERRORS])
        print(
            f"warning: {len(result.errors)} pictures could not be read, see the column `error`:"
            f"\n  {shown}",
            file=sys.stderr,
        )
    if result.seen_in_training:
        print(
            f"note: {result.seen_in_training} of the pictures or their people were trained on",
            file=sys.stderr,
        )


def _from_environment(flag: str, variable: str) -> list[Path]:
    """
    Raises:
        ConfigError: the variable is not set either.
    """
    path = env_default(variable)
    if path is None:
        raise ConfigError(f"{flag} is missing; give it, or set ${variable}")
    return [path]


def _resolve_batch_size(chosen: str | int, provider: str) -> int:
    if isinstance(chosen, int):
        return chosen
    return CPU_BATCH if "CPU" in provider.upper() else GPU_BATCH


def _batch_size(text: str) -> str | int:
    return text if text == "auto" else _positive(text)


def _shard(text: str) -> Shard:
    from maskcls.runtime.shards import Shard

    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return Shard(int(number), int(count))
    raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 1/4, 2/4, 3/4 or 4/4")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)
