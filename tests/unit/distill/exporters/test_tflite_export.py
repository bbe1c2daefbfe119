"""LiteRT export: files compute what torch computes, the manifest describes them, errors are clear."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

pytest.importorskip("litert_torch", reason="in an environment of its own; make interop")

from distill.exporters.export_source import ExportSource
from distill.exporters.mobile_graphs import PER_HEAD_CONVOLUTIONS
from distill.exporters.static_graphs import BATCHED_HEADS, OperatorLayout, StaticDecoder, StaticEncoder
from distill.exporters.static_interface import MASKED_SCORE, decoder_inputs
from distill.exporters.tflite_export import SUFFIX, export_tflite
from eval.audio.recordings import read_audio
from eval.decoding.transcriber import Transcriber
from eval.runtimes.registry import available_artefacts, open_runtime
from eval.runtimes.tflite_runtime import TfliteRuntime, files, load
from eval.runtimes.torch_runtime import TorchRuntime
from recipes.core.errors import UserError
from tests.conftest import TEACHER
from tests.unit.models import PROMPT, demo_student, parity_db, psnr, random_mel, random_whisper

pytestmark = pytest.mark.usefixtures("one_thread")

PRECISIONS = list(SUFFIX)


@dataclass
class Exported:
    model: WhisperForConditionalGeneration
    folder: Path


def export(model: WhisperForConditionalGeneration, folder: Path) -> Exported:
    model.config.save_pretrained(folder)
    export_tflite(ExportSource(model, TEACHER, []), folder, PRECISIONS)
    return Exported(model, folder)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(demo_student(), tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(random_whisper(), tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize("layout", [BATCHED_HEADS, PER_HEAD_CONVOLUTIONS], ids=["batched", "mobile"])
@torch.no_grad()
def test_graphs_equal_hugging_face(layout: OperatorLayout) -> None:
    model = random_whisper()
    mel = torch.from_numpy(random_mel(model))
    expected_1SD = model.model.encoder(mel).last_hidden_state
    outputs = StaticEncoder(model, layout)(mel)
    torch.testing.assert_close(outputs.pop("encoder_states"), expected_1SD, atol=1e-5, rtol=0)
    tokens = torch.randint(0, 300, (1, 24))
    expected_LV = model(decoder_input_ids=tokens, encoder_outputs=(expected_1SD,)).logits[0]
    decoder, inputs = StaticDecoder(model, layout), decoder_inputs(model) | outputs
    inputs["attention_mask"].fill_(MASKED_SCORE)
    for position, token in enumerate(tokens[0]):
        inputs["attention_mask"][..., 24 - position - 1 :] = 0
        stepped = decoder(**inputs | {"input_ids": token[None, None], "position": torch.tensor([position])})
        torch.testing.assert_close(stepped.pop("logits")[0], expected_LV[position], atol=1e-4, rtol=0)
        inputs |= {name.removeprefix("new_"): cache for name, cache in stepped.items()}


# Measured: 136, 88 and 50 dB on the demo student, 135, 75 and 46 dB on the small one.
@pytest.mark.parametrize(("precision", "psnr_db"), [("fp32", 110), ("fp16", 70), ("int8", 40)])
@pytest.mark.parametrize(("which", "tokens"), [("demo", 60), ("small", 21)])
def test_files_equal_torch(
    request: pytest.FixtureRequest, which: str, tokens: int, precision: str, psnr_db: float
) -> None:
    exported: Exported = request.getfixturevalue(which)
    assert parity_db(exported.model, load(exported.folder, precision, 1), tokens) > psnr_db


def test_fp32_greedy_text_is_equal(demo: Exported, speech: Path) -> None:
    clips = [read_audio([str(path)]) for path in sorted((speech / "test").glob("*.flac"))[:3]]
    torch_transcriber = Transcriber(TorchRuntime(demo.model), TEACHER, "en")
    tflite_transcriber = Transcriber.with_runtime(torch_transcriber, load(demo.folder, "fp32", 1))
    expected = torch_transcriber.transcribe(clips, max_tokens=40)
    found = tflite_transcriber.transcribe(clips, max_tokens=40)
    assert [row.tokens for row in found] == [row.tokens for row in expected]
    assert any(row.text for row in expected)


def test_a_batch_is_run_clip_by_clip(small: Exported) -> None:
    mel_BFT, runtime = random_mel(small.model, 2), load(small.folder, "fp32", 1)
    tokens_BL = np.array([[3, 10, 11], [3, 20, 21]])
    state = runtime.encode(mel_BFT)
    assert state.encoder_BSD.shape == (2, 35, 32)
    logits_BV, _ = runtime.step(tokens_BL, state)
    expected_BV, _ = TorchRuntime(small.model).step(tokens_BL, TorchRuntime(small.model).encode(mel_BFT))
    assert logits_BV.shape == (2, 300)
    assert logits_BV.dtype == np.float32
    assert psnr(expected_BV, logits_BV) > 110


def test_a_state_can_be_continued_twice(small: Exported) -> None:
    runtime = load(small.folder, "fp32", 1)
    _, state = runtime.step(np.array([PROMPT]), runtime.encode(random_mel(small.model)))
    before, _ = runtime.step(np.array([[8]]), state)
    runtime.step(np.array([[9]]), state)
    runtime.step(np.array([PROMPT]), runtime.encode(-random_mel(small.model)))
    after, _ = runtime.step(np.array([[8]]), state)
    np.testing.assert_array_equal(before, after)


def test_text_longer_than_the_cache_is_a_user_error(small: Exported) -> None:
    runtime = load(small.folder, "fp32", 1)
    assert runtime.max_tokens == 24
    state = runtime.encode(random_mel(small.model))
    _, full = runtime.step(np.full((1, 24), 4), state)
    for start, tokens in ((state, 25), (full, 1)):
        with pytest.raises(UserError, match="24 tokens"):
            runtime.step(np.full((1, tokens), 4), start)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_manifest_agrees_with_the_files(demo: Exported, precision: str) -> None:
    from ai_edge_litert.interpreter import Interpreter

    manifest = json.loads((demo.folder / "tflite" / "manifest.json").read_text())
    for part in ("encoder", "decoder"):
        runner = Interpreter(str(demo.folder / "tflite" / manifest["files"][precision][part])).get_signature_runner()
        for side, details in (("inputs", runner.get_input_details()), ("outputs", runner.get_output_details())):
            found = {name: (detail["shape"].tolist(), detail["dtype"].__name__) for name, detail in details.items()}
            assert {row["name"]: (row["shape"], row["dtype"]) for row in manifest[part][side]} == found
            assert all(row["meaning"] for row in manifest[part][side])
    form = Transcriber(TorchRuntime(demo.model), TEACHER, "en").format
    tokens, audio = manifest["tokens"], manifest["audio"]
    chosen = {"language": "<|en|>", "task": "transcribe"}
    prompt = [part["id"] if "id" in part else part["one_of"][chosen[part["part"]]] for part in tokens["prompt"]]
    assert prompt == form.prompt
    assert (tokens["end"], tokens["never"], tokens["never_first"]) == (form.end, form.suppress, form.suppress_first)
    assert (audio["window_samples"], audio["mel_bins"]) == (form.window_samples, form.mel_bins)
    assert manifest["cache"]["length"] == load(demo.folder, precision, 1).max_tokens


def test_every_weight_is_stored_once_and_small(demo: Exported) -> None:
    weights = sum(parameter.numel() for parameter in demo.model.model.decoder.parameters())
    for precision, bytes_per_weight in (("fp32", 4), ("fp16", 2), ("int8", 1)):
        size = files(demo.folder, precision)[1].stat().st_size
        # The encoder file has the cross-attention projections of the decoder; the graph itself takes 50 kB.
        assert size < bytes_per_weight * weights + 200_000


def test_unknown_precision_and_half_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="int4"):
        export_tflite(ExportSource(random_whisper(), TEACHER, []), tmp_path, ["int4"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="float32"):
        export_tflite(ExportSource(random_whisper().half(), TEACHER, []), tmp_path, ["fp32"])


def test_registry_finds_the_files(small: Exported) -> None:
    assert [pair for pair in available_artefacts(small.folder) if pair[0] == "tflite"] == [
        ("tflite", p) for p in PRECISIONS
    ]
    assert isinstance(open_runtime("tflite", small.folder, "int8", 1), TfliteRuntime)


@pytest.mark.parametrize("damage", ["missing", "truncated", "rubbish", "empty"])
def test_damaged_file_is_a_user_error(small: Exported, tmp_path: Path, damage: str) -> None:
    (tmp_path / "tflite").mkdir()
    encoder, decoder = files(small.folder, "fp32")
    (tmp_path / "tflite" / encoder.name).write_bytes(encoder.read_bytes())
    content = decoder.read_bytes()
    contents = {"truncated": content[: len(content) // 2], "rubbish": b"not a model", "empty": b""}
    if damage != "missing":
        (tmp_path / "tflite" / decoder.name).write_bytes(contents[damage])
    with pytest.raises(UserError, match=decoder.name) as raised:
        load(tmp_path, "fp32", 1)
    assert "\n" not in str(raised.value)


def test_the_runtime_imports_no_training_packages() -> None:
    heavy = "{'torch', 'transformers', 'tensorflow', 'litert_torch'} & set(sys.modules)"
    program = f"import sys, eval.runtimes.tflite_runtime, ai_edge_litert.interpreter; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", program], check=True)
