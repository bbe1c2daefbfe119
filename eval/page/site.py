"""TODO: eval.page.site."""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from eval.page.web_packages import MEMBERS
from eval.runtimes.model_format import JsonSettings, ModelFormat
from eval.runtimes.onnx_runtime import SUFFIX, files
from recipes.core.errors import UserError

PAGE = Path(__file__).with_name("static")

DTYPE = {"fp32": "fp32", "fp16": "fp16", "int8": "q8"}
"""What transformers.js calls the precisions."""

_JSONS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_INDEX = "page.json"

_TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".json": "application/json", ".wasm": "application/wasm", ".svg": "image/svg+xml",
}  # fmt: skip

_HEADERS = {
    # Wasm threads share memory, which a page may only when isolated from other origins.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    # The browser itself refuses any request to another host; workers take this from their header, not from the page.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; media-src blob:",
    "Cache-Control": "no-cache",
}

Site = Mapping[str, Path | bytes]
"""What stands at each path below the page's address: a file, or its content."""


def onnx_precisions(folder: Path, wanted: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Name, dtype of transformers.js and MB of each ONNX precision in `folder`, the smallest first.

    Raises UserError where a file is missing that the page needs, or a precision that is wanted.
    """
    for name in _JSONS:
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: expected an exported model folder with {name}, found none; run the export stage"
            )
    whole = [
        precision
        for precision, suffix in SUFFIX.items()
        if all(
            (folder / "onnx" / f"{part}{suffix}.onnx").is_file() for part in ("encoder_model", "decoder_model_merged")
        )
    ]
    if not whole or set(wanted or ()) - set(whole):
        asked = " and ".join(wanted) if wanted else " or ".join(SUFFIX)
        raise UserError(
            f"{folder}/onnx: expected encoder_model and decoder_model_merged in {asked}, found "
            f"{', '.join(whole) or 'none'}; export them with export.onnx"
        )
    sizes = {name: sum(file.stat().st_size for file in files(folder, name)) for name in wanted or whole}
    return [
        {"name": name, "dtype": DTYPE[name], "mb": round(size / 1e6, 2)}
        for name, size in sorted(sizes.items(), key=lambda item: item[1])
    ]


def build_site(folder: Path, packages: Path, found: Sequence[Mapping[str, Any]], name: str, *, offline: bool) -> Site:
    """Everything the page fetches. `offline` has it keep a copy of itself in the browser."""
    languages = sorted(
        code.strip("<|>") for code in JsonSettings.read(folder / "generation_config.json").get("lang_to_id") or {}
    )
    form = ModelFormat.load(folder, "en" if "en" in languages else next(iter(languages), None), "transcribe")
    index = {
        "name": name, "precisions": found, "languages": languages if form.languages else [],
        "window": form.window_samples, "offline": offline,
    }  # fmt: skip
    weights = [file for item in found for file in files(folder, item["name"])]
    return {
        **{file.name: file for file in sorted(PAGE.iterdir())},
        **{f"packages/{file}": packages / file for file in MEMBERS},
        **{f"model/{file}": folder / file for file in _JSONS},
        **{f"model/onnx/{file.name}": file for file in weights},
        _INDEX: json.dumps(index, ensure_ascii=False).encode(),
    }


def write_site(content: Site, folder: Path) -> int:
    """The site as a folder, made beside and renamed; bytes written. UserError for a folder that holds anything else."""
    there = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if not file.is_dir()]
    strange = [name for name in there if name not in content and not name.startswith(("model/", "packages/"))]
    if folder.is_file() or strange or (there and _INDEX not in there):
        found = next(iter(strange or there), "a file")
        raise UserError(f"--static {folder}: expected a new folder or an earlier page, found {found}; name another")
    beside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    size = 0
    for path, source in content.items():
        target = beside / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            target.write_bytes(source)
        else:
            shutil.copyfile(source, target)
        size += target.stat().st_size
    if folder.exists():
        shutil.rmtree(folder)
    beside.rename(folder)
    return size


class Handler(BaseHTTPRequestHandler):
    """Answers from a site, and from nothing else."""

    protocol_version = "HTTP/1.1"

    def __init__(self, content: Site, *request: Any):
        self.content = content
        super().__init__(*request)

    def do_GET(self) -> None:
        """A file of the site with its type, or 404."""
        path = self.path.partition("?")[0].lstrip("/") or "index.html"
        source = self.content.get(path)
        if source is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", _TYPES.get(Path(path).suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(size))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(ConnectionError):  # the browser went on to another page
            if isinstance(source, bytes):
                self.wfile.write(source)
            else:
                with source.open("rb") as file:
                    shutil.copyfileobj(file, self.wfile)


def _name(folder: Path) -> str:
    """The run's name of runs/NAME/export/model, otherwise the folder's own."""
    return next(part for part in reversed(folder.resolve().parts) if part not in ("model", "export", "release"))
