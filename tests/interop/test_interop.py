"""Exports load unmodified in the runtimes they are made for, and say what torch says.

Each loader lives in its own environment under .interop/ (`make interop` builds them), since none installs beside
transformers 5. A script of its own prints {"audio": ..., "text": ...} a line for each clip.

    SOTTOVOCE_MODEL=runs/alnum-real/train/model make interop      another checkpoint than the demo teacher's cut
    SOTTOVOCE_MODEL=runs/alnum-real/release CLIPS=25 make interop a release: its own files, as they are, on 50 clips
"""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import soundfile

from distill.exporters.export_source import ExportSource
from distill.exporters.exporter_registry import EXPORTERS
from distill.exporters.folder_layout import write_layout
from distill.models.cutting import cut_layers
from distill.models.saving import save_model
from distill.publishing.release_folder import SUMS, verify_checksums
from eval.audio.recordings import SAMPLE_RATE, read_audio
from eval.decoding.transcriber import Transcriber
from eval.runtimes.registry import weight_files
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from recipes.schema.export_section import DensePrecision
from tests.conftest import ROOT, TEACHER

SPEECH = Path(os.environ.get("SPEECH", ROOT.parent / "shared" / "speech"))
CLIPS = int(os.environ.get("CLIPS", "10"))
"""From each corpus."""


@dataclass(frozen=True)
class Loader:
    environment: str
    """Folder under .interop/."""
    script: str
    runtime: str | None
    """Exporter that writes its files; none where the script exports the checkpoint in its own environment."""
    precisions: tuple[DensePrecision, ...] = ("fp32", "int8")
    folder: str = "."
    """Inside the export; {precision} is filled in."""
    options: tuple[str, ...] = ()
    """As for `folder`."""
    program: str = "bin/python"
    """Inside the environment, or a command on the PATH."""
    vocabulary: int = 0
    """Tokens from which on it gives a multilingual model torch's prompt; with fewer the share is stated alone."""


DTYPE = ("--dtype", "{precision}")
LOADERS = {
    "optimum": Loader("optimum", "optimum_clips.py", "onnx", get_args(DensePrecision), options=DTYPE),
    "transformers.js": Loader(
        "transformers-js", "transformers_js_clips.mjs", "onnx", get_args(DensePrecision), options=DTYPE, program="node"
    ),
    "faster-whisper": Loader(
        "faster-whisper", "faster_whisper_clips.py", "ctranslate2", folder="ctranslate2-{precision}", vocabulary=51865
    ),
    "openvino-genai": Loader(
        "genai",
        "genai.py",
        "openvino",
        get_args(DensePrecision),
        "openvino-{precision}",
        options=("--precision", "f32"),
    ),
    "litert": Loader(
        "litert", "litert_clips.py", None, get_args(DensePrecision), options=("--precision", "{precision}")
    ),
}
CASES = [(name, precision) for name, loader in LOADERS.items() for precision in loader.precisions]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Real recordings by the 16 kHz float32 WAV that every loader reads without resampling."""
    folder = tmp_path_factory.mktemp("clips")
    found = {}
    for corpus in ("an4", "digits"):
        recordings = sorted(file for file in (SPEECH / corpus / "test").glob("*") if file.suffix in (".flac", ".wav"))
        if not recordings:
            pytest.skip(f"{SPEECH / corpus / 'test'}: no recordings; set SPEECH")
        for recording in recordings[:: len(recordings) // CLIPS][:CLIPS]:
            wav = folder / f"{recording.stem}.wav"
            found[str(wav)] = read_audio(recording)
            soundfile.write(wav, found[str(wav)], SAMPLE_RATE, subtype="FLOAT")
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """$SOTTOVOCE_MODEL, or else half the decoder of the demo's teacher."""
    if given := os.environ.get("SOTTOVOCE_MODEL"):
        return Path(given)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(cut_layers(load_model(TEACHER), [0, 1, 2, 3], [0, 3]), folder, processors=TEACHER, decoder_layers=[0, 3])
    return folder


@pytest.fixture(scope="module")
def said(checkpoint: Path, clips: dict[str, np.ndarray]) -> dict[str, str]:
    """What torch says, clip by clip as the loaders do."""
    transcriber = Transcriber(TorchRuntime(load_model(checkpoint)), checkpoint, "en")
    return {wav: transcriber.transcribe([clip])[0].text for wav, clip in clips.items()}


@pytest.fixture(scope="module")
def export(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The export folder of a runtime, written as the stage does, once."""
    calibration = [[str(file)] for file in sorted((SPEECH / "an4" / "train").glob("*.flac"))[:64]]

    @cache
    def write(runtime: str) -> Path:
        if (checkpoint / SUMS).is_file():
            verify_checksums(checkpoint)
            return checkpoint
        folder = tmp_path_factory.mktemp(runtime)
        write_layout(checkpoint, folder)
        precisions = sorted({precision for loader in LOADERS.values() if loader.runtime == runtime
                             for precision in loader.precisions})  # fmt: skip
        EXPORTERS[runtime](ExportSource(load_model(checkpoint), checkpoint, calibration), folder, precisions)
        return folder

    return write


@pytest.mark.parametrize(("name", "precision"), CASES, ids=lambda value: value)
def test_a_loader_says_what_torch_says(
    name: str, precision: DensePrecision, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    if not any("interop" in str(argument) for argument in request.config.args):
        pytest.skip("takes minutes; make interop")
    loader = LOADERS[name]
    environment = ROOT / ".interop" / loader.environment
    if not (environment / ".installed").is_file():
        pytest.skip(f"{name}: its environment {environment.relative_to(ROOT)} is not built; make interop")
    said: dict[str, str] = request.getfixturevalue("said")
    checkpoint: Path = request.getfixturevalue("checkpoint")
    folder = request.getfixturevalue("export")(loader.runtime) if loader.runtime else checkpoint
    if loader.runtime and not weight_files(loader.runtime, folder, precision):
        pytest.skip(f"{folder}: holds no {loader.runtime} {precision}")
    program = environment / loader.program
    options = [option.format(precision=precision) for option in loader.options]
    done = subprocess.run(
        [program if program.exists() else loader.program, Path(__file__).with_name(loader.script),
         folder / loader.folder.format(precision=precision), *options, *said],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    heard = {row["audio"]: row["text"] for row in map(json.loads, done.stdout.splitlines())}
    assert list(heard) == list(said)
    different = {Path(wav).stem: (said[wav], heard[wav]) for wav in said if said[wav] != heard[wav]}
    with capsys.disabled():
        print(f"\n{name} {precision}: {len(said) - len(different)} of {len(said)} clips as torch fp32 says")
    assert any(said.values())
    # Rounded weights may say something else: theirs is the share stated above.
    if precision == "fp32" and not (multilingual(folder) and vocabulary(folder) < loader.vocabulary):
        assert not different


def multilingual(folder: Path) -> bool:
    """Whether a model folder's prompt names a language."""
    return bool(json.loads((folder / "generation_config.json").read_text())["is_multilingual"])


def vocabulary(folder: Path) -> int:
    """Tokens of a model folder."""
    return int(json.loads((folder / "config.json").read_text())["vocab_size"])
