"""Make one network of several of a task.

    python cli/combine.py runs/age/folds --name ensemble

An ensemble, or a soup: the mean of their weights. What comes of it is a run folder like any other.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from maskcls.commands.combine import main

if __name__ == "__main__":
    raise SystemExit(main())
