"""`sottovoce serve FOLDER`: try a student in a browser. The page runs the ONNX files itself and uploads nothing.

    sottovoce serve runs/demo/export/model                   a page on this machine
    sottovoce serve runs/demo/export/model --static site     a folder for any web host; works offline once visited

FOLDER is in the layout of transformers.js, as the stages `export` and `release` write it. Only the files that the page
needs are served. A static page has a service worker, which keeps a copy of it in the browser.
"""

import argparse
from contextlib import suppress
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

from eval.page.site import SiteHandler, build_site, model_name, onnx_precisions, write_site
from eval.page.web_packages import web_packages
from eval.runtimes.onnx_runtime import SUFFIX
from recipes.core.errors import UserError, run_main


def main() -> None:
    """Serve the page, or write it to a folder."""
    args = _arguments()
    precisions, name = onnx_precisions(args.folder, args.precision), args.name or model_name(args.folder)
    offline = args.static is not None
    site = build_site(args.folder, web_packages(args.packages), precisions, name, offline=offline)
    title = f"{name} ({', '.join(map(str, precisions))})"
    if args.static is not None:
        size = write_site(site, args.static)
        print(f"{args.static}: {title}, {len(site)} files, {size / 1e6:.1f} MB; put the folder on any https host")
        return
    try:
        server = ThreadingHTTPServer((args.host, args.port), partial(SiteHandler, site))
    except OSError as error:
        raise UserError(f"{args.host}:{args.port}: {error.strerror}; choose another --host or --port") from error
    with server, suppress(KeyboardInterrupt):
        print(f"http://{args.host}:{server.server_port}/  {title}; stop with ctrl-C", flush=True)
        server.serve_forever()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sottovoce serve", description="Try a student in a browser.")
    parser.add_argument("folder", type=Path, help="model folder with onnx/, such as runs/demo/export/model")
    parser.add_argument(
        "--static", type=Path, metavar="OUT", help="write the page to this folder instead of serving it"
    )
    parser.add_argument("--precision", nargs="+", choices=tuple(SUFFIX), help="default: all that the folder has")
    parser.add_argument("--name", help="title of the page; default: the name of the run or of the folder")
    parser.add_argument(
        "--packages", type=Path, metavar="FOLDER",
        help="folder of transformers.js, which is downloaded there if missing; default: sottovoce/ in the user's cache",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="port, or 0 for any free one; default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
