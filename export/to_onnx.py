"""Export trained networks to ONNX, and hold the files against PyTorch.

    python export/to_onnx.py --model-dir runs --out onnx
    python export/to_onnx.py --mask-gender runs/mask_gender/NAME --age runs/age/NAME --out onnx
    python export/to_onnx.py --model-dir runs --out onnx-fp16 --precision fp16

Writes mask_gender.onnx, age.onnx and maskcls.onnx, which takes raw pixels and answers labels.
All options: python export/to_onnx.py --help
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from maskcls.commands.export import main

if __name__ == "__main__":
    raise SystemExit(main())
