"""`sottovoce serve FOLDER`: try a student in a browser; nothing is uploaded, the page runs the ONNX files itself.

sottovoce serve runs/demo/export/model                   a page on this machine
sottovoce serve runs/demo/export/model --static site     a folder for any web host; works offline once visited

FOLDER is in transformers.js' layout, as the export and release stages write it. Only what the page needs of it is
served; of a static page a service worker keeps a copy in the browser.
"""

import argparse
from contextlib import suppress
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

from eval.page.site import Handler, _name, build_site, onnx_precisions, write_site
from eval.page.web_packages import web_packages
from eval.runtimes.onnx_runtime import SUFFIX
from recipes.core.errors import UserError, run_main


def main() -> None:
    """Serve the page, or write it to a folder."""
    given = _arguments()
    found = onnx_precisions(given.folder, given.precision)
    name = given.name or _name(given.folder)
    content = build_site(given.folder, web_packages(given.packages), found, name, offline=given.static is not None)
    said = ", ".join(f"{item['name']} {item['mb']:.3g} MB" for item in found)
    if given.static is not None:
        size = write_site(content, given.static)
        print(f"{given.static}: {name} ({said}), {len(content)} files, {size / 1e6:.1f} MB; put it on any https host")
        return
    try:
        server = ThreadingHTTPServer((given.host, given.port), partial(Handler, content))
    except OSError as error:
        raise UserError(f"{given.host}:{given.port}: {error.strerror}; take another --host or --port") from error
    with server, suppress(KeyboardInterrupt):
        print(f"http://{given.host}:{server.server_port}/  {name} ({said}); ctrl-C ends it", flush=True)
        server.serve_forever()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sottovoce serve", description="Try a student in a browser.")
    parser.add_argument("folder", type=Path, help="model folder with onnx/, such as runs/demo/export/model")
    parser.add_argument(
        "--static", type=Path, metavar="OUT", help="write the page to this folder instead of serving it"
    )
    parser.add_argument("--precision", nargs="+", choices=tuple(SUFFIX), help="default: all that the folder has")
    parser.add_argument("--name", help="what the page calls the model; default: the run's or the folder's name")
    parser.add_argument(
        "--packages", type=Path, metavar="FOLDER",
        help="where transformers.js is, or is put when missing; default: sottovoce/ in the user's cache",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="0 for any; default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
