"""What the page runs on: transformers.js and the wasm build of ONNX Runtime that belongs to it, fetched once from npm.

    python -m eval.page.web_packages FOLDER

The three files are those of the packages, but for two imports: a worker has no import map, so that the bare names in
transformers.js become paths, as a bundler would make them. ONNX Runtime comes without WebGPU, 14 MB instead of 27.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from recipes.core.errors import RunError, UserError, run_main

TRANSFORMERS, ONNX_RUNTIME = "@huggingface/transformers@4.3.1", "onnxruntime-web@1.31.0-dev.20260914-8d85527a0"
"""The second is what the first depends on, to the day."""

MEMBERS = {
    "transformers.js": (TRANSFORMERS, "package/dist/transformers.web.min.js"),
    "LICENSE": (TRANSFORMERS, "package/LICENSE"),
    "ort.js": (ONNX_RUNTIME, "package/dist/ort.wasm.bundle.min.mjs"),
    "ort.wasm": (ONNX_RUNTIME, "package/dist/ort-wasm-simd-threaded.wasm"),
}
"""Where each file comes from."""

_IMPORTS = ('from"onnxruntime-web/webgpu"', 'from"onnxruntime-common"')
_NOTICE = f"/* {TRANSFORMERS}, Apache-2.0; changed: its two imports are paths */\n"


def web_packages(folder: Path | None = None) -> Path:
    """The folder with the files of MEMBERS, filled by npm where it is not there; default: in the user's cache.

    Raises UserError where npm is missing, RunError where it fails.
    """
    if folder is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "sottovoce" / "-".join(spec.rpartition("@")[2] for spec in (TRANSFORMERS, ONNX_RUNTIME))
    if all((folder / name).is_file() for name in MEMBERS):
        return folder
    if (npm := shutil.which("npm")) is None:
        raise UserError(
            f"{folder}: expected transformers.js for the page, found none, and no npm to fetch it with; install node "
            "20 or later, or copy the folder from a machine that has it and name it with --packages"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        _fetch(npm, Path(beside))
        shutil.rmtree(folder, ignore_errors=True)
        (Path(beside) / "files").rename(folder)
    return folder


def _fetch(npm: str, folder: Path) -> None:
    """The packages as npm packs them, 35 MB, and out of them `folder/files`; installed they would take 474 MB."""
    print(f"fetching {TRANSFORMERS} and {ONNX_RUNTIME} with npm, once", file=sys.stderr, flush=True)
    (folder / "files").mkdir()
    for spec in (TRANSFORMERS, ONNX_RUNTIME):
        command = [npm, "pack", spec, "--pack-destination", str(folder), "--loglevel", "error"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(f"npm pack {spec}: {done.stderr.strip()[-500:]}; mend it and run again")
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
            raise RunError(f"{TRANSFORMERS}: expected {statement} once, found it {code.count(statement)} times")
        code = code.replace(statement, 'from"./ort.js"')
    (folder / "files" / "transformers.js").write_text(_NOTICE + code, encoding="utf-8")


if __name__ == "__main__":
    run_main(lambda: print(web_packages(Path(sys.argv[1]))))
