"""Serve a page that looks at photos in the browser, with an exported network.

    python cli/demo.py --fetch                                  # onnxruntime-web, once; needs npm
    python cli/demo.py --model onnx/maskcls.onnx
    python cli/demo.py --model onnx/maskcls.onnx --out page     # files for any web server

No photo leaves the browser, and only browsers on this machine reach the server.
All options: python cli/demo.py --help
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

from maskcls.commands.demo import main

if __name__ == "__main__":
    raise SystemExit(main())
