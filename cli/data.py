"""Check a data folder, look for wrong labels, or make a small sample to try the project on.

    python cli/data.py check data/train
    python cli/data.py audit --oof oof.csv --out audit
    python cli/data.py sample --out runs/sample    # runs/sample/train, runs/sample/eval

All options: python cli/data.py --help, python cli/data.py check --help
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from maskcls.commands.data import main

if __name__ == "__main__":
    raise SystemExit(main())
