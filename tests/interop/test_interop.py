"""Exports load without changes in the runtimes that they are made for, and give the same text as PyTorch.

Each loader has its own environment under .interop/, built by `make interop`, because none can be installed together
with transformers 5. Its script prints a JSON line {"audio": ..., "text": ...} for each clip.

    SOTTOVOCE_MODEL=runs/alnum-real/train/model make interop      a checkpoint other than the demo teacher's
    SOTTOVOCE_MODEL=runs/alnum-real/release CLIPS=25 make interop   the files of a release, on 50 clips
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
from tests.conftest import ROOT, SPEECH, TEACHER

CLIPS = int(os.environ.get("CLIPS", "10"))
"""Number of clips from each corpus."""


@dataclass(frozen=True)
class Loader:
    """A program that loads one of our formats, and how its script is run."""

    environment: str
    """Folder under .interop/."""
    script: str
    runtime: str | None
    """Runtime whose exporter writes the files; None if the script exports the checkpoint in its own environment."""
    precisions: tuple[DensePrecision, ...] = ("fp32", "int8")
    folder: str = "."
    """Model folder within the export; `{precision}` is filled in."""
    options: tuple[str, ...] = ()
    """Options of the script; `{precision}` is filled in."""
    program: str = "bin/python"
    """Interpreter within the environment, or a command on the PATH."""
    vocabulary: int = 0
    """Vocabulary size below which the loader gives multilingual models another prompt than PyTorch does, so that
    texts may differ; the share of equal texts is only printed then."""


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
    """Real recordings, as samples by WAV file. All loaders read 16 kHz float32 WAV without resampling."""
    folder = tmp_path_factory.mktemp("clips")
    clips = {}
    for corpus in ("an4", "digits"):
        recordings = sorted(file for file in (SPEECH / corpus / "test").glob("*") if file.suffix in (".flac", ".wav"))
        if not recordings:
            pytest.skip(f"{SPEECH / corpus / 'test'}: holds no recordings; set SPEECH")
        for recording in recordings[:: len(recordings) // CLIPS][:CLIPS]:
            wav = folder / f"{recording.stem}.wav"
            clips[str(wav)] = read_audio(recording)
            soundfile.write(wav, clips[str(wav)], SAMPLE_RATE, subtype="FLOAT")
    return clips


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """$SOTTOVOCE_MODEL, or else the demo's teacher with half of its decoder layers."""
    if model := os.environ.get("SOTTOVOCE_MODEL"):
        return Path(model)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(
        cut_layers(load_model(TEACHER), [0, 1, 2, 3], [0, 3]), folder, processors=TEACHER, drop_alignment_heads=True
    )
    return folder


@pytest.fixture(scope="module")
def torch_texts(checkpoint: Path, clips: dict[str, np.ndarray]) -> dict[str, str]:
    """The text of each clip from PyTorch, one clip at a time as in the loaders."""
    transcriber = Transcriber(TorchRuntime(load_model(checkpoint)), checkpoint, "en")
    return {wav: transcriber.transcribe([clip])[0].text for wav, clip in clips.items()}


@pytest.fixture(scope="module")
def export(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the export folder of a runtime, written as the stage `export` does. Each is written once."""
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
def test_a_loader_gives_the_same_text_as_torch(
    name: str, precision: DensePrecision, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    if not any("interop" in str(argument) for argument in request.config.args):
        pytest.skip("takes minutes; make interop")
    loader = LOADERS[name]
    environment = ROOT / ".interop" / loader.environment
    if not (environment / ".installed").is_file():
        pytest.skip(f"{name}: its environment {environment.relative_to(ROOT)} is missing; make interop")
    texts: dict[str, str] = request.getfixturevalue("torch_texts")
    checkpoint: Path = request.getfixturevalue("checkpoint")
    folder = request.getfixturevalue("export")(loader.runtime) if loader.runtime else checkpoint
    if loader.runtime and not weight_files(loader.runtime, folder, precision):
        pytest.skip(f"{folder}: holds no {loader.runtime} {precision}")
    program = environment / loader.program
    options = [option.format(precision=precision) for option in loader.options]
    done = subprocess.run(
        [program if program.exists() else loader.program, Path(__file__).with_name(loader.script),
         folder / loader.folder.format(precision=precision), *options, *texts],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    loader_texts = {row["audio"]: row["text"] for row in map(json.loads, done.stdout.splitlines())}
    assert list(loader_texts) == list(texts)
    different = {Path(wav).stem: (texts[wav], loader_texts[wav]) for wav in texts if texts[wav] != loader_texts[wav]}
    with capsys.disabled():
        print(f"\n{name} {precision}: {len(texts) - len(different)} of {len(texts)} clips as in torch fp32")
    assert any(texts.values())
    # Rounded weights may give other texts; the share of equal ones is printed above.
    if precision == "fp32" and not (multilingual(folder) and vocabulary(folder) < loader.vocabulary):
        assert not different


def multilingual(folder: Path) -> bool:
    """Return whether the prompt of a model names a language."""
    return bool(json.loads((folder / "generation_config.json").read_text())["is_multilingual"])


def vocabulary(folder: Path) -> int:
    """Return the vocabulary size of a model."""
    return int(json.loads((folder / "config.json").read_text())["vocab_size"])
