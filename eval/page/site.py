"""The site of a model: which files the page needs, written to a folder or served over HTTP."""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from eval.page.web_packages import MEMBERS
from eval.runtimes.model_format import JsonSettings, ModelFormat
from eval.runtimes.onnx_runtime import SUFFIX, files
from recipes.core.errors import UserError

PAGE = Path(__file__).with_name("static")
"""Folder of the page's own files."""

DTYPE = {"fp32": "fp32", "fp16": "fp16", "int8": "q8"}
"""For each precision its name in transformers.js."""

_JSONS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_INDEX = "page.json"
"""File that tells the page about the model."""

_TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".json": "application/json", ".wasm": "application/wasm", ".svg": "image/svg+xml",
}  # fmt: skip

_HEADERS = {
    # The threads of WebAssembly share memory, which browsers allow only to pages that are isolated from other origins.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    # The browser itself refuses every request to another host. Workers take this policy from their own header, not
    # from the page.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; media-src blob:",
    "Cache-Control": "no-cache",
}

Site = Mapping[str, Path | bytes]
"""For each path below the page's address a file, or its content."""


@dataclass(frozen=True)
class PagePrecision:
    """A precision that the page offers."""

    name: str
    dtype: str
    """Its name in transformers.js."""
    mb: float
    """Size of the ONNX files, 10^6 bytes."""

    def __str__(self) -> str:
        return f"{self.name} {self.mb:.3g} MB"


def onnx_precisions(folder: Path, wanted: Sequence[str] | None = None) -> list[PagePrecision]:
    """Return the precisions that `folder` has complete ONNX files of, or those that are wanted, the smallest first.

    Raises UserError if a file that the page needs or a wanted precision is missing.
    """
    for name in _JSONS:
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: expected an exported model folder with {name}, found none; run the export stage"
            )
    complete = [
        precision
        for precision, suffix in SUFFIX.items()
        if all(
            (folder / "onnx" / f"{part}{suffix}.onnx").is_file() for part in ("encoder_model", "decoder_model_merged")
        )
    ]
    if not complete or set(wanted or ()) - set(complete):
        expected = " and ".join(wanted) if wanted else " or ".join(SUFFIX)
        raise UserError(
            f"{folder}/onnx: expected encoder_model and decoder_model_merged in {expected}, found "
            f"{', '.join(complete) or 'none'}; export them with export.onnx"
        )
    sizes = {name: sum(file.stat().st_size for file in files(folder, name)) for name in wanted or complete}
    return [
        PagePrecision(name, DTYPE[name], round(size / 1e6, 2))
        for name, size in sorted(sizes.items(), key=lambda item: item[1])
    ]


def model_name(folder: Path) -> str:
    """Return the name of the run of a folder such as runs/NAME/export/model, otherwise the folder's own name."""
    return next(part for part in reversed(folder.resolve().parts) if part not in ("model", "export", "release"))


def build_site(folder: Path, packages: Path, precisions: Sequence[PagePrecision], name: str, *, offline: bool) -> Site:
    """Return everything that the page fetches.

    Args:
        folder: Exported model folder.
        packages: Folder of the JavaScript packages, as `web_packages` returns it.
        precisions: Precisions that the page offers; the first is the default.
        name: Title of the page.
        offline: Whether the page keeps a copy of itself in the browser, so that it works without a network.
    """
    languages = sorted(
        code.strip("<|>") for code in JsonSettings.read(folder / "generation_config.json").get("lang_to_id") or {}
    )
    model_format = ModelFormat.load(folder, "en" if "en" in languages else next(iter(languages), None), "transcribe")
    index = {
        "name": name, "precisions": [asdict(precision) for precision in precisions],
        "languages": languages if model_format.languages else [], "window": model_format.window_samples,
        "offline": offline,
    }  # fmt: skip
    weights = [file for precision in precisions for file in files(folder, precision.name)]
    return {
        **{file.name: file for file in sorted(PAGE.iterdir())},
        **{f"packages/{file}": packages / file for file in MEMBERS},
        **{f"model/{file}": folder / file for file in _JSONS},
        **{f"model/onnx/{file.name}": file for file in weights},
        _INDEX: json.dumps(index, ensure_ascii=False).encode(),
    }


def write_site(site: Site, folder: Path) -> int:
    """Write the site to a folder and return its size in bytes.

    An earlier page is replaced, once the new one is complete. Raises UserError for a folder that holds anything else.
    """
    present = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if not file.is_dir()]
    foreign = [name for name in present if name not in site and not name.startswith(("model/", "packages/"))]
    if folder.is_file() or foreign or (present and _INDEX not in present):
        found = next(iter(foreign or present), "a file")
        raise UserError(f"--static {folder}: expected a new folder or an earlier page, found {found}; name another")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    size = 0
    for path, source in site.items():
        target = partial / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            target.write_bytes(source)
        else:
            shutil.copyfile(source, target)
        size += target.stat().st_size
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return size


class SiteHandler(BaseHTTPRequestHandler):
    """Answers requests for the files of a site, and for nothing else."""

    protocol_version = "HTTP/1.1"

    def __init__(self, site: Site, *request: Any):
        self.site = site
        super().__init__(*request)

    def do_GET(self) -> None:
        """Send a file of the site with its content type, or status 404."""
        source = self._send_headers()
        with suppress(ConnectionError):  # the browser has left the page
            if isinstance(source, bytes):
                self.wfile.write(source)
            elif source is not None:
                with source.open("rb") as file:
                    shutil.copyfileobj(file, self.wfile)

    def do_HEAD(self) -> None:
        """Send the headers that GET would send, without the content."""
        self._send_headers()

    def _send_headers(self) -> Path | bytes | None:
        """Send status and headers, and return the content to send; None if the site has no such file."""
        path = self.path.partition("?")[0].lstrip("/") or "index.html"
        source = self.site.get(path)
        if source is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", _TYPES.get(Path(path).suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(size))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        return source
