"""The JavaScript packages of the page: transformers.js and its WebAssembly build of ONNX Runtime, fetched from npm.

    python -m eval.page.web_packages FOLDER

The files are used as they are in the packages, except for two imports in transformers.js: a web worker has no import
map, so that package names are replaced by paths, as a bundler would do. The build of ONNX Runtime without WebGPU is
used; it has 14 MB instead of 27 MB.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from recipes.core.errors import RunError, UserError, run_main
from recipes.core.logs import log

TRANSFORMERS, ONNX_RUNTIME = "@huggingface/transformers@4.3.1", "onnxruntime-web@1.31.0-dev.20260914-8d85527a0"
"""Packages with their versions. This version of ONNX Runtime is the one that this version of transformers.js needs."""

MEMBERS = {
    "transformers.js": (TRANSFORMERS, "package/dist/transformers.web.min.js"),
    "LICENSE": (TRANSFORMERS, "package/LICENSE"),
    "ort.js": (ONNX_RUNTIME, "package/dist/ort.wasm.bundle.min.mjs"),
    "ort.wasm": (ONNX_RUNTIME, "package/dist/ort-wasm-simd-threaded.wasm"),
}
"""For each file in the folder its package, and its path in the package."""

_IMPORTS = ('from"onnxruntime-web/webgpu"', 'from"onnxruntime-common"')
_NOTICE = f"/* {TRANSFORMERS}, Apache-2.0; changed: two imports are paths */\n"


def web_packages(folder: Path | None = None) -> Path:
    """Return the folder with the files of `MEMBERS`, after downloading them with npm if they are not there yet.

    The default is a folder in the user's cache. Raises UserError if npm is needed but not installed, and RunError if
    npm fails.
    """
    if folder is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "sottovoce" / "-".join(spec.rpartition("@")[2] for spec in (TRANSFORMERS, ONNX_RUNTIME))
    if all((folder / name).is_file() for name in MEMBERS):
        return folder
    if (npm := shutil.which("npm")) is None:
        raise UserError(
            f"{folder}: expected transformers.js for the page, found none, and no npm to download it with; install "
            "node 20 or later, or copy the folder from a machine that has it and name it with --packages"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        _download(npm, Path(scratch))
        shutil.rmtree(folder, ignore_errors=True)
        (Path(scratch) / "files").rename(folder)
    return folder


def _download(npm: str, folder: Path) -> None:
    """Download the packed packages, 35 MB, and extract the files to `folder/files`. Installed they take 474 MB."""
    log.info(f"downloading {TRANSFORMERS} and {ONNX_RUNTIME} with npm; this happens once")
    (folder / "files").mkdir()
    for spec in (TRANSFORMERS, ONNX_RUNTIME):
        command = [npm, "pack", spec, "--pack-destination", str(folder), "--loglevel", "error"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(f"npm pack {spec}: {done.stderr.strip()[-500:]}; solve this and run the command again")
        archive = folder / done.stdout.split()[-1]
        with tarfile.open(archive) as packed:
            for name, (package, member) in MEMBERS.items():
                if package == spec:
                    source = packed.extractfile(member)
                    assert source is not None, member
                    (folder / "files" / name).write_bytes(source.read())
    code = (folder / "files" / "transformers.js").read_text(encoding="utf-8")
    for statement in _IMPORTS:
        if code.count(statement) != 1:
            raise RunError(
                f"{TRANSFORMERS}: expected {statement} once, found it {code.count(statement)} times; change _IMPORTS"
            )
        code = code.replace(statement, 'from"./ort.js"')
    (folder / "files" / "transformers.js").write_text(_NOTICE + code, encoding="utf-8")


if __name__ == "__main__":
    run_main(lambda: print(web_packages(Path(sys.argv[1]))))
