"""Label pictures with the 18-class code.

    python cli/infer.py --model runs --images eval/images --info eval/info.csv --out output.csv
    python cli/infer.py --model runs/mask_gender/NAME runs/age/NAME --images photos --out output.csv
    python cli/infer.py --model runs --images photos --out labels.parquet --probabilities
    python cli/infer.py --model runs --images photos --out output.csv --provider cpu
    SM_CHANNEL_EVAL=data/eval SM_CHANNEL_MODEL=runs SM_OUTPUT_DATA_DIR=out python cli/infer.py

Writes a table ImageID,ans with a row per picture: ans is mask * 6 + gender * 3 + age.
All options: python cli/infer.py --help
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from maskcls.commands.infer import main

if __name__ == "__main__":
    raise SystemExit(main())
