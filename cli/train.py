"""Train one network, or both branches.

    python cli/data.py sample --out runs/sample            # pictures to try it on
    python cli/train.py --task all --data-dir runs/sample/train --model-dir runs
    python cli/train.py --task age --data-dir data/train --model-dir runs --model vgg19 --epochs 20
    python cli/train.py --task mask_gender --data-dir data/train --model-dir runs --config my.yaml
    python cli/train.py --task all --data-dir data/train --model-dir runs --folds 5 --name folds
    python cli/train.py --resume runs/age/NAME             # goes on where that run stopped
    SM_CHANNEL_TRAIN=data/train SM_MODEL_DIR=runs python cli/train.py --task all

Writes MODEL_DIR/<task>/<name>/ with config.yaml, split.csv, last.pt, best.pt, metrics.csv.
All options: python cli/train.py --help
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from maskcls.commands.train import main

if __name__ == "__main__":
    raise SystemExit(main())
