"""Runs scripts in forked children, so that a command costs no import.

    python tests/command_server.py

One JSON object a line on stdin, {"argv": [script, option, ...], "cwd": folder, "env": {...},
"out": file, "err": file}; one a line on stdout, the exit status.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# What commands import when they have work to do. Not onnxruntime: it starts a thread, and a fork
# has none of its parent's.
PACKAGES = ("matplotlib.figure", "torch.utils.tensorboard")
PARTS = ("maskcls.onnx", "maskcls.search.study", "maskcls.training")
for name in (*PACKAGES, *PARTS):
    importlib.import_module(name)


def run(argv: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> int:
    """In a child: what the script ends with."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for name, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as error:
        return int(error.code or 0)
    return 0


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = run(**json.loads(line))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # taking PyTorch down costs a second
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
