"""OpenVINO export: models compute what torch computes, in the files and names that GenAI and optimum-intel load."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino
import pytest
from transformers import WhisperForConditionalGeneration

from data_prep.sources.synthesis import VOICES, synthesize
from distill.exporters import openvino_export, openvino_quantize
from distill.exporters.export_source import ExportSource
from distill.exporters.openvino_export import export_openvino
from distill.models.saving import save_model
from eval.audio.recordings import read_audio
from eval.decoding.transcriber import Transcriber
from eval.runtimes.openvino_runtime import PRECISIONS, OpenVinoRuntime, files
from eval.runtimes.registry import open_runtime
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from recipes.core.errors import UserError
from tests.conftest import SENTENCES, TEACHER
from tests.unit.models import demo_student, psnr, random_whisper, token_steps, torch_steps

pytestmark = pytest.mark.usefixtures("one_thread")

PSNR_DB = {"fp32": 90, "fp16": 40, "int8": 30}
"""Smallest 20 log10(largest expected value / root mean square error); fp16 computes in bfloat16 where the CPU can."""

STEPS = [4, 1, 1, 3, 1, 1]


@dataclass
class Exported:
    model: WhisperForConditionalGeneration
    folder: Path
    audio: list[str]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Use few clips: they change which alpha is chosen, not how it is chosen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_quantize, "CALIBRATION_CLIPS", 4)
        patch.setattr(openvino_quantize, "HELD_OUT_CLIPS", 2)
        yield


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The demo teacher with two decoder layers: trained weights, a window of 7 s, a small vocabulary."""
    folder, speech = tmp_path_factory.mktemp("demo"), tmp_path_factory.mktemp("speech")
    rows = synthesize(SENTENCES[:8], VOICES, speech, seed=1)
    audio = [str(speech / row["file_name"]) for row in rows]
    save_model(demo_student(), folder, processors=TEACHER, drop_alignment_heads=True)
    model = load_model(folder)
    export_openvino(ExportSource(model, folder, [[path] for path in audio], [None, 0.5]), folder, PRECISIONS)
    return Exported(model, folder, audio)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model with 128 mel bins, the vocabulary of large-v3, and more encoder than decoder layers."""
    model = random_whisper(
        vocab_size=51866, encoder_layers=2, decoder_layers=1, max_source_positions=50, max_target_positions=40
    )
    folder = tmp_path_factory.mktemp("wide")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_export, "tokenizer_models", lambda _: {})
        export_openvino(ExportSource(model, folder, []), folder, ["fp32", "fp16"])
    return Exported(model, folder, [])


def mels(exported: Exported, batch: int, seed: int = 0) -> np.ndarray:
    """Return log-mels [B, F, T] of the exported model's recordings, or noise of the same range if it has none."""
    config = exported.model.config
    if exported.audio:
        transcriber = Transcriber(TorchRuntime(exported.model), exported.folder, "en")
        return transcriber.features([read_audio(exported.audio[seed + row]) for row in range(batch)])
    shape = (batch, config.num_mel_bins, 2 * config.max_source_positions)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def run(runtime: OpenVinoRuntime, mel_BFT: np.ndarray, steps: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    state, logits = runtime.encode(mel_BFT), []
    encoder_BSD = state.encoder_BSD
    for tokens_BL in steps:
        logits_BV, state = runtime.step(tokens_BL, state)
        assert logits_BV.dtype == np.float32
        logits.append(logits_BV)
    return encoder_BSD, np.stack(logits)


# Batch sizes grow and shrink on one runtime: its state must be that of the current clip, in every precision.
@pytest.mark.parametrize(
    ("name", "precision"), [*(("demo", precision) for precision in PRECISIONS), ("wide", "fp32"), ("wide", "fp16")]
)
def test_runtime_equals_torch_clip_after_clip(name: str, precision: str, request: pytest.FixtureRequest) -> None:
    exported: Exported = request.getfixturevalue(name)
    runtime = OpenVinoRuntime(exported.folder, precision, threads=1)
    for seed, batch in enumerate([1, 1, 2, 1, 3]):
        mel_BFT, steps = mels(exported, batch, seed), token_steps(exported.model, batch, STEPS)
        expected_BSD, expected_NBV = torch_steps(exported.model, mel_BFT, steps)
        encoder_BSD, found_NBV = run(runtime, mel_BFT, steps)
        assert psnr(expected_BSD, encoder_BSD) > PSNR_DB[precision]
        assert psnr(expected_NBV, found_NBV) > PSNR_DB[precision]


def test_greedy_text_is_equal_and_repeats(demo: Exported) -> None:
    clips = [read_audio(path) for path in demo.audio]
    expected = Transcriber(TorchRuntime(demo.model), demo.folder, "en").transcribe(clips)
    transcriber = Transcriber(OpenVinoRuntime(demo.folder, "fp32", threads=1), demo.folder, "en")
    for _ in range(2):
        found = [transcriber.transcribe([clip])[0] for clip in clips]
        assert [row.tokens for row in found] == [row.tokens for row in expected]
    assert [row.tokens for row in transcriber.transcribe(clips)] == [row.tokens for row in expected]
    assert any(row.text for row in expected)


def test_bfloat16_reads_each_clip_from_its_own_memory(demo: Exported) -> None:
    # GenAI and optimum-intel pass arrays without a copy and let the CPU plugin choose its precision.
    path = demo.folder / "openvino-fp32" / "openvino_decoder_model.xml"
    request = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"}).create_infer_request()
    (tokens_BL, *_) = steps = token_steps(demo.model, 1, STEPS[:1])
    encoder_states = []  # keeps the arrays alive, so that each clip has memory of its own
    for seed in range(3):
        encoder_BSD, expected_NBV = torch_steps(demo.model, mels(demo, 1, seed), steps)
        encoder_states.append(encoder_BSD)
        request.reset_state()
        feeds = {"input_ids": tokens_BL, "encoder_hidden_states": encoder_BSD, "beam_idx": np.zeros(1, np.int32)}
        request.infer(feeds, share_inputs=True)
        assert psnr(expected_NBV[0], request.get_output_tensor().data[:, -1]) > PSNR_DB["fp16"]


def test_an_older_state_is_refused(demo: Exported) -> None:
    runtime, tokens_BL = OpenVinoRuntime(demo.folder, "fp32", threads=1), np.array([[257]])
    fresh = runtime.encode(mels(demo, 1))
    first, older = runtime.step(tokens_BL, fresh)
    runtime.step(tokens_BL, older)
    with pytest.raises(ValueError, match="older"):
        runtime.step(tokens_BL, older)
    again, _ = runtime.step(tokens_BL, fresh)  # a clip may be started again
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_inputs_outputs_and_files_are_those_that_loaders_expect(demo: Exported, precision: str) -> None:
    folder, core = demo.folder / f"openvino-{precision}", openvino.Core()
    encoder, decoder = (core.read_model(folder / f"openvino_{part}_model.xml") for part in ("encoder", "decoder"))
    assert [value.any_name for value in encoder.inputs] == ["input_features"]
    assert [value.any_name for value in encoder.outputs] == ["last_hidden_state"]
    assert {value.any_name for value in decoder.inputs} == {"input_ids", "encoder_hidden_states", "beam_idx"}
    assert [value.any_name for value in decoder.outputs] == ["logits"]
    assert len(decoder.get_variables()) == 4 * demo.model.config.decoder_layers
    names = {f"openvino_{part}.{kind}" for part in ("tokenizer", "detokenizer") for kind in ("xml", "bin")}
    names |= {path.name for path in (*demo.folder.glob("*.json"), *demo.folder.glob("*.txt"))}
    assert names <= {path.name for path in folder.iterdir()}


def test_each_weight_is_stored_once_in_its_precision(demo: Exported) -> None:
    parameters = sum(tensor.numel() for tensor in demo.model.parameters())
    sizes = {
        precision: sum(path.stat().st_size for path in files(demo.folder, precision) if path.suffix == ".bin")
        for precision in PRECISIONS
    }
    assert 1 <= sizes["fp32"] / (4 * parameters) < 1.03
    assert 1 <= sizes["fp16"] / (2 * parameters) < 1.03
    assert 1 <= sizes["int8"] / parameters < 1.2
    choice = json.loads((demo.folder / "openvino-int8" / "quantization.json").read_text())["encoder"]
    best = max(choice["grid"], key=lambda row: row["psnr_db"])
    assert choice["smooth_quant_alpha"] == best["smooth_quant_alpha"]
    assert choice["held_out_clips"] > 0


def test_int8_without_audio_is_a_user_error(demo: Exported, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training audio"):
        export_openvino(ExportSource(demo.model, demo.folder, []), tmp_path, ["int8"])


@pytest.mark.parametrize("damage", ["missing", "truncated", "rubbish", "empty"])
@pytest.mark.parametrize("kind", ["xml", "bin"])
def test_damaged_file_is_a_user_error(demo: Exported, tmp_path: Path, kind: str, damage: str) -> None:
    shutil.copytree(demo.folder / "openvino-fp32", tmp_path / "openvino-fp32")
    broken = tmp_path / "openvino-fp32" / f"openvino_decoder_model.{kind}"
    content = broken.read_bytes()
    if damage == "missing":
        broken.unlink()
    else:
        broken.write_bytes({"truncated": content[: len(content) // 2], "rubbish": b"no model", "empty": b""}[damage])
    with pytest.raises(UserError, match="openvino_decoder_model") as raised:
        open_runtime("openvino", tmp_path, "fp32", threads=1)
    assert "\n" not in str(raised.value)


def test_runtime_needs_neither_torch_nor_transformers() -> None:
    heavy = "{'torch', 'transformers', 'nncf', 'openvino_tokenizers'} & set(sys.modules)"
    program = f"import sys, eval.runtimes.openvino_runtime, openvino; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", program], check=True)
