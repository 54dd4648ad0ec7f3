"""A page that looks at photos, in the browser.

python cli/demo.py --model onnx/maskcls.onnx
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from maskcls.commands._run import guarded
from maskcls.errors import ConfigError

PORT = 8000

EPILOG = """\
The page takes a photo from a file or from the camera and shows mask, gender and age group with
their probabilities. Everything is computed in the browser, with onnxruntime-web; no photo leaves
it. Only browsers on this machine reach the server.

onnxruntime-web is fetched once, with npm, into the user's cache folder. Without npm or a network,
run `npm pack` on another machine, as --fetch says, and give the file that it makes.

--out writes the page for any web server. The folder holds all that the page needs, and needs no
network. A file opened from the disk (file://) does not work: browsers want a server for this.
With the headers Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy:
require-corp the page uses several threads, and without them one.

examples:
  maskcls-demo --fetch                                         once
  maskcls-demo --model onnx/maskcls.onnx                       serve, and open a browser
  maskcls-demo --model onnx --port 0 --no-browser
  maskcls-demo --model onnx/maskcls.onnx --out page            files for a web server
"""


def build_parser() -> argparse.ArgumentParser:
    """The options of `maskcls-demo`."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Serve a page that looks at photos in the browser, with an exported network.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="PATH",
        help="the fused file maskcls.onnx of maskcls-export, or the folder with it",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write the page, the model and onnxruntime-web there, and do not serve",
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=PORT,
        metavar="N",
        help=f"of 127.0.0.1; 0 takes any that is free (default {PORT})",
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="do not open a browser, only say the address"
    )
    parser.add_argument(
        "--fetch",
        nargs="?",
        const="npm",
        metavar="TGZ",
        help="first fetch onnxruntime-web, unless it is there: with npm, or from its package file",
    )
    parser.add_argument(
        "--cache",
        default="auto",
        metavar="DIR",
        help="where onnxruntime-web is kept; auto, the default, is the user's cache folder",
    )
    return parser


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code. Serves until it is interrupted."""
    args = build_parser().parse_args(argv)
    if args.model is None and args.fetch is None:
        raise ConfigError("--model is missing; give the maskcls.onnx of maskcls-export")
    if args.model is None and args.out is not None:
        raise ConfigError("--out: which networks the page is of is missing; give --model, too")

    from maskcls.files import cache_folder

    cache = cache_folder(args.cache)
    if args.fetch is not None:
        _fetch(cache, args.fetch)
    if args.model is None:
        return 0
    from maskcls.web.site import build_site, write_site

    site = build_site(args.model, cache)
    if args.out is not None:
        write_site(site, args.out)
        size = sum(map(len, site.values())) / 1e6
        print(f"{len(site)} files, {size:.1f} MB → {args.out}")
        print(f"next: python -m http.server --bind 127.0.0.1 --directory {args.out}")
        return 0
    _serve(site, args.port, browser=not args.no_browser)
    return 0


def _fetch(cache: Path, source: str) -> None:
    from maskcls.web.vendor import PACKAGE, VERSION, fetch, is_fetched, vendor_folder

    if is_fetched(cache):
        print(f"{PACKAGE} {VERSION} is in {vendor_folder(cache)} already")
        return
    print(f"fetching {PACKAGE} {VERSION}", flush=True)
    print(f"{PACKAGE} {VERSION} → {fetch(cache, None if source == 'npm' else Path(source))}")


def _serve(site: dict[str, bytes], port: int, *, browser: bool) -> None:
    import threading
    import webbrowser

    from maskcls.web.server import PageServer

    with PageServer(site, port) as server:
        print(f"the page is at {server.url} for browsers on this machine; Ctrl-C ends", flush=True)
        if browser:
            # In a thread: a browser in the terminal returns only when it is closed.
            threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        server.serve_forever()


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, a whole number from 0 to 65535")
    return int(text)
