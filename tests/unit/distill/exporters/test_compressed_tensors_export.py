"""compressed-tensors export: weights on their grid, everything else unchanged, loadable by plain transformers."""

import json
import shutil
import sys
from pathlib import Path
from types import MethodType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, WhisperForConditionalGeneration

from distill.compression.low_rank import replace_with_pairs
from distill.exporters.compressed_tensors_export import GROUPS, export_compressed_tensors, forward, group_size
from distill.exporters.export_source import ExportSource
from distill.exporters.exporter_registry import write_artefacts
from distill.exporters.folder_layout import write_layout
from distill.models.saving import save_model
from eval.audio.recordings import read_audio
from eval.decoding.transcriber import Transcriber
from eval.runtimes.modeling_sottovoce import low_rank_pair
from eval.runtimes.registry import available_artefacts, open_runtime, weight_files
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from recipes.core.errors import UserError
from recipes.schema.export_section import ExportSection
from tests.conftest import TEACHER
from tests.unit.models import demo_student, psnr, random_mel, random_whisper

pytestmark = pytest.mark.usefixtures("one_thread")

BITS = {"w8a8": 8, "w4a16": 4}
PRECISIONS = list(BITS)


def write(model: WhisperForConditionalGeneration, folder: Path, speech: Path) -> ExportSource:
    """Write a checkpoint, and the exported folders into its subfolder `export`."""
    pytest.importorskip("llmcompressor", reason="in an environment of its own; make interop")
    audio = [[str(file)] for file in sorted((speech / "train").glob("*.flac"))]
    save_model(model, folder, processors=TEACHER, drop_alignment_heads=True)
    write_layout(folder, folder / "export")
    student = ExportSource(model, folder, audio)
    export_compressed_tensors(student, folder / "export", PRECISIONS)
    return student


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, speech: Path) -> ExportSource:
    return write(demo_student(), tmp_path_factory.mktemp("demo"), speech)


def layers(student: ExportSource) -> dict[str, nn.Linear]:
    linear = {name: layer for name, layer in student.model.named_modules() if isinstance(layer, nn.Linear)}
    del linear["proj_out"]
    return linear


def stored(student: ExportSource, precision: str) -> dict[str, torch.Tensor]:
    (file,) = weight_files("compressed_tensors", student.source / "export", precision)
    return load_file(file)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_folder_generates_in_plain_transformers(student: ExportSource, precision: str, speech: Path) -> None:
    folder = student.source / "export" / f"compressed-{precision}"
    plain = AutoModelForSpeechSeq2Seq.from_pretrained(folder, dtype=torch.float32)
    assert type(plain) is WhisperForConditionalGeneration
    processor = AutoProcessor.from_pretrained(folder)
    ours = Transcriber(open_runtime("compressed_tensors", folder.parent, precision, 1), folder.parent, "en")
    for clip in [read_audio(file) for file in sorted((speech / "test").glob("*.flac"))]:
        (expected,) = ours.transcribe([clip])
        features = processor(clip, sampling_rate=16_000, return_tensors="pt").input_features
        texts = processor.batch_decode(plain.generate(features, language="en"), skip_special_tokens=True)
        assert texts[0].strip() == expected.text


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_folder_is_complete_and_in_the_layout_of_vllm(student: ExportSource, precision: str) -> None:
    folder = student.source / "export" / f"compressed-{precision}"
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["WhisperForConditionalGeneration"]
    rounding = config["quantization_config"]
    assert (rounding["quant_method"], rounding["ignore"]) == ("compressed-tensors", ["proj_out"])
    assert rounding["config_groups"]["group_0"]["weights"]["num_bits"] == BITS[precision]
    assert {file.suffix for file in folder.iterdir()} == {".json", ".txt", ".safetensors"}
    for file in (*folder.parent.glob("*.json"), *folder.parent.glob("*.txt")):
        assert file.name == "config.json" or (folder / file.name).read_bytes() == file.read_bytes()
    assert ("compressed_tensors", precision) in set(available_artefacts(folder.parent))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_on_their_grid_near_the_original(student: ExportSource, precision: str) -> None:
    tensors = stored(student, precision)
    loaded = dict(load_model(student.source / "export" / f"compressed-{precision}").named_modules())
    limit = 2 ** (BITS[precision] - 1)
    for name, layer in layers(student).items():
        scale_OG = tensors[f"{name}.weight_scale"].float()
        scale_OI = scale_OG.repeat_interleave(layer.in_features // scale_OG.shape[1], dim=1)
        steps_OI = loaded[name].weight / scale_OI
        torch.testing.assert_close(steps_OI, steps_OI.round(), atol=1e-2, rtol=0)
        assert steps_OI.round().min() >= -limit
        assert steps_OI.round().max() <= limit - 1
        moved_OI = (loaded[name].weight - layer.weight).abs() / scale_OI
        # Rounding alone moves a weight by at most half a step, clipping by one. GPTQ's compensation moves weights
        # further: at least 0.970 of them are within one step, and none is beyond 3.4.
        assert (moved_OI <= 1.001).float().mean() > 0.95
        assert moved_OI.max() < 6


@pytest.mark.parametrize("precision", PRECISIONS)
def test_everything_but_the_linear_layers_is_unchanged(student: ExportSource, precision: str) -> None:
    tensors, changed = stored(student, precision), {f"{name}.weight" for name in layers(student)}
    for name, value in student.model.state_dict().items():
        if name not in changed and name != "proj_out.weight":
            torch.testing.assert_close(tensors[name], value.half(), atol=0, rtol=0)
    assert not [name for name in tensors if name.startswith("proj_out")]
    loaded = load_model(student.source / "export" / f"compressed-{precision}")
    assert loaded.proj_out.weight is loaded.model.decoder.embed_tokens.weight


def test_four_bits_are_small_and_the_student_is_unchanged(student: ExportSource) -> None:
    (original,) = weight_files("torch", student.source, "fp32")
    sizes = [original.stat().st_size, *(weight_files("compressed_tensors", student.source / "export", precision)[0]
                                     .stat().st_size for precision in PRECISIONS)]  # fmt: skip
    assert sizes[1] < 0.3 * sizes[0]
    assert sizes[2] < 0.19 * sizes[0]
    weights = load_model(student.source).state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in student.model.state_dict().items())


def test_w8a8_rounds_activations_too(student: ExportSource) -> None:
    layer = load_model(student.source / "export" / "compressed-w8a8").model.encoder.layers[0].fc1
    x_BLI = torch.randn(2, 5, layer.in_features)
    scale_BL1 = x_BLI.abs().amax(dim=-1, keepdim=True) / 127.5
    rounded_BLI = (x_BLI / scale_BL1).round().clamp(-128, 127) * scale_BL1
    torch.testing.assert_close(layer(x_BLI), nn.functional.linear(rounded_BLI, layer.weight, layer.bias))


def test_low_rank_pairs_are_expanded(tmp_path: Path, speech: Path) -> None:
    model, name = demo_student(), "model.encoder.layers.1.fc1"
    narrow = replace_with_pairs(model, {name: low_rank_pair(192, 768, 64)})
    folder = write(narrow, tmp_path, speech).source / "export"
    config = json.loads((folder / "compressed-w8a8" / "config.json").read_text())
    assert not {"low_rank", "auto_map"} & config.keys()
    mel_BFT = random_mel(narrow)
    expected_BSD, computed_BSD = (
        np.array(runtime.encode(mel_BFT).encoder_BSD)
        for runtime in (TorchRuntime(narrow), open_runtime("compressed_tensors", folder, "w8a8", 1))
    )
    assert psnr(expected_BSD, computed_BSD) > 40


@torch.no_grad()
def test_the_forward_without_branches_equals_whispers() -> None:
    model = random_whisper()
    mel, tokens = torch.from_numpy(random_mel(model, 2)), torch.randint(0, 300, (2, 7))
    expected = model(input_features=mel, decoder_input_ids=tokens).logits
    model.model.forward = MethodType(forward, model.model)
    torch.testing.assert_close(model(input_features=mel, decoder_input_ids=tokens).logits, expected)


@given(widths=st.lists(st.integers(1, 40).map(lambda count: 16 * count), min_size=1, max_size=3))
def test_a_group_divides_every_width_and_is_the_largest(widths: list[int]) -> None:
    size = group_size(nn.ModuleList([nn.Linear(width, 1, device="meta") for width in widths]))
    dividing = [group for group in GROUPS if not any(width % group for width in widths)]
    assert size == max(dividing, default=None)


def test_unsupported_requests_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = ExportSource(random_whisper(), TEACHER, [])
    with pytest.raises(ValueError, match="expected some of w8a8, w4a16, found int8"):
        export_compressed_tensors(student, tmp_path, ["int8"])
    with pytest.raises(ValidationError, match="onnx"):
        ExportSection(onnx=["w4a16"])
    section = ExportSection(onnx=[], compressed_tensors=["w4a16"])
    assert section.artefacts == [("compressed_tensors-w4a16", "compressed_tensors", "w4a16")]
    monkeypatch.setitem(sys.modules, "llmcompressor", None)
    with pytest.raises(UserError, match=r"package llmcompressor, found none; pip install 'sottovoce\[int4\]'"):
        write_artefacts(student, tmp_path, section)
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    with pytest.raises(UserError, match="expected the package compressed_tensors, found none; pip install it"):
        open_runtime("compressed_tensors", tmp_path, "w4a16", 1)
    with pytest.raises(UserError, match="expected precision w8a8 or w4a16, found int8"):
        open_runtime("compressed_tensors", tmp_path, "int8", 1)


def test_calibration_needs_training_audio(tmp_path: Path) -> None:
    pytest.importorskip("llmcompressor", reason="in an environment of its own; make interop")
    with pytest.raises(UserError, match=r"export\.compressed_tensors: expects training audio"):
        export_compressed_tensors(ExportSource(random_whisper(), TEACHER, []), tmp_path, PRECISIONS)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_a_damaged_file_is_one_line(student: ExportSource, tmp_path: Path, name: str, damage: str) -> None:
    shutil.copytree(student.source / "export", tmp_path / "export")
    path = tmp_path / "export" / "compressed-w4a16" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(UserError, match="compressed-w4a16: expected a Whisper checkpoint") as raised:
        open_runtime("compressed_tensors", tmp_path / "export", "w4a16", 1)
    assert "\n" not in str(raised.value)
