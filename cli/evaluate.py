"""Score a prediction file against the ground truth, or runs on the people who validated them.

    python cli/evaluate.py --gt gt.csv --pred output.csv --json score.json
    python cli/evaluate.py runs/mask_gender/exp runs/age/exp --report report.html
    python cli/evaluate.py --oof runs/mask_gender/folds runs/age/folds --json oof.json
    SM_GROUND_TRUTH_DIR=data/eval SM_OUTPUT_DATA_DIR=out python cli/evaluate.py

Prints macro F1 and accuracy of the 18 classes and of mask, gender and age.
All options: python cli/evaluate.py --help
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from maskcls.commands.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
