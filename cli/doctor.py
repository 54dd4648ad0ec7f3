"""Show what this machine has for maskcls, and what is missing.

    python cli/doctor.py

Versions, devices, the execution providers that really load and why the others do not, decoders.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from maskcls.commands.doctor import main

if __name__ == "__main__":
    raise SystemExit(main())
