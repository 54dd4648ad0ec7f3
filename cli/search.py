"""Search for the settings of a training that score best on the validation people.

    python cli/search.py --task age --data-dir data/train --study studies/age --trials 20
    python cli/search.py --study studies/age --trials 40   # goes on, also after an interruption
    python cli/search.py --task age --data-dir data/train --study own --space my.yaml --minutes 120
    python cli/train.py --config studies/age/best.yaml --seed 7

Writes STUDY/best.yaml, trials.csv and search.html, and a run for each trial. Needs the extra
`search`. All options: python cli/search.py --help
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from maskcls.commands.search import main

if __name__ == "__main__":
    raise SystemExit(main())
