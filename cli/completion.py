"""Print a script with which bash or zsh completes the options of all commands.

    python cli/completion.py bash > ~/.maskcls.bash
    python cli/completion.py zsh > ~/.maskcls.zsh

It is for the installed commands: maskcls-train, maskcls-infer, and so on.
How a shell takes it up: python cli/completion.py --help
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from maskcls.commands.completion import main

if __name__ == "__main__":
    raise SystemExit(main())
