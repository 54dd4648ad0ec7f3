"""Label pictures with a Triton Inference Server, which has the model that was exported for it.

    python export/to_onnx.py --model-dir runs --out onnx --triton
    tritonserver --model-repository onnx/model_repository
    pip install 'tritonclient[http]'             (beside maskcls)
    python examples/serving/triton_client.py photo.jpg other.png

No test runs this client: Triton comes as a container. It was tried with Triton 2.51 on a CPU, with
the Python backend in the place of the onnxruntime backend, under the config that the export writes.

Start the server with NVIDIA_TF32_OVERRIDE=0 in its environment: on newer GPUs it would otherwise
compute with fewer digits than the exported file was compared with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from maskcls.errors import PictureError
from maskcls.images import read_image
from maskcls.labels import MULTI

MODEL = "maskcls"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Label pictures with a Triton server.")
    parser.add_argument("pictures", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--url", default="localhost:8000", help="default: localhost:8000")
    args = parser.parse_args(argv)
    try:
        return label(args.url, args.pictures)
    except (InferenceServerException, OSError) as error:
        print(f"error: {args.url}: {error}", file=sys.stderr)
        return 1


def label(url: str, pictures: Sequence[Path]) -> int:
    """Prints a line a picture; returns the exit code."""
    code = 0
    with triton.InferenceServerClient(url) as client:
        for path in pictures:
            try:
                pixels = np.asarray(read_image(path))[None]  # (1, H, W, 3), uint8 RGB
            except PictureError as error:
                print(f"error: {error}", file=sys.stderr)
                code = 1
                continue
            images = triton.InferInput("images", list(pixels.shape), "UINT8")
            images.set_data_from_numpy(pixels)
            answer = client.infer(MODEL, [images])
            [[label]] = answer.as_numpy("label")  # (1, 1)
            [probabilities] = answer.as_numpy("class_prob")  # (1, 18)
            print(f"{path}: {MULTI.class_names[label]} ({probabilities[label]:.2f})")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
