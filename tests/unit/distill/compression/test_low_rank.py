"""Low-rank pairs: covariance as numpy's, ranks that keep the wanted variance, folders and exports equal to PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from transformers import WhisperForConditionalGeneration

from distill.compression import low_rank as module
from distill.compression.low_rank import (
    Covariance,
    PrincipalAxes,
    expand_pairs,
    factor_encoder,
    factor_layer,
    principal_axes,
    saves_weights,
)
from distill.exporters.export_source import ExportSource
from distill.exporters.exporter_registry import EXPORTERS
from distill.exporters.folder_layout import write_layout
from distill.exporters.onnx_export import export_onnx
from distill.exporters.parity import TorchReference, compare_with_torch
from distill.exporters.static_graphs import StaticEncoder
from distill.models.cutting import cut_layers
from distill.models.model_size import count_parameters_m, encoder_macs_m
from distill.models.saving import save_model
from distill.training import optimization
from distill.training.teacher_outputs import LiveTeacher
from eval.decoding.transcriber import Transcriber
from eval.runtimes.modeling_sottovoce import SottovoceForConditionalGeneration
from eval.runtimes.registry import open_runtime
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from recipes.core.errors import UserError
from recipes.schema.compress_section import LowRankOptions
from recipes.schema.train_section import LoraOptions
from tests.conftest import TEACHER
from tests.unit.models import Noise, demo_student, parity_db, random_mel

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = LowRankOptions(attention=1, mlp=1)


def compressed(
    model: WhisperForConditionalGeneration, section: LowRankOptions, **options: object
) -> SottovoceForConditionalGeneration:
    factored, _ = factor_encoder(model, section, Noise(model), **options)  # type: ignore[arg-type]
    assert isinstance(factored, SottovoceForConditionalGeneration)
    return factored


@pytest.fixture(scope="module")
def narrow() -> SottovoceForConditionalGeneration:
    """Return the demo's student with every layer factored where that saves weights."""
    return compressed(demo_student(), LowRankOptions(preset="fast"))


@torch.no_grad()
def states(model: WhisperForConditionalGeneration) -> torch.Tensor:
    return model.model.encoder(torch.from_numpy(random_mel(model, 1))).last_hidden_state


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 6), st.integers(0, 99), st.floats(-1e3, 1e3))
def test_the_streaming_covariance_is_that_of_all_rows(chunks: list[int], width: int, seed: int, offset: float) -> None:
    rows = np.random.default_rng(seed).standard_normal((sum(chunks), width)) + offset
    statistics = Covariance(width)
    for chunk in np.split(rows, np.cumsum(chunks)[:-1]):
        statistics.add(torch.from_numpy(chunk))
    np.testing.assert_allclose(statistics.mean_D, rows.mean(0), atol=1e-9)
    np.testing.assert_allclose(statistics.covariance(), np.cov(rows.T, bias=True).reshape(width, width), atol=1e-8)


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 12), (12, 5), (8, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_axes_are_those_of_the_outputs_whichever_side_is_observed(inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=bias)
    x_NI = torch.randn(200, inputs) @ torch.randn(inputs, inputs) + 3
    y_NO = layer(x_NI).detach()
    statistics = Covariance(min(inputs, outputs))
    module._add_narrower_side(statistics, x_NI, y_NO)
    axes = principal_axes(layer, statistics)
    variances = np.linalg.eigvalsh(np.cov(y_NO.double().numpy().T, bias=True))[::-1][: min(inputs, outputs)]
    np.testing.assert_allclose(axes.explained_K, np.cumsum(variances) / variances.sum(), atol=1e-6)
    np.testing.assert_allclose(axes.mean_O, y_NO.double().mean(0), atol=1e-5)
    for rank in range(1, min(inputs, outputs) + 1):
        lost = (factor_layer(layer, axes, rank)(x_NI) - y_NO).detach().double().square().sum(1).mean()
        variance = (y_NO.double() - y_NO.double().mean(0)).square().sum(1).mean()
        assert 1 - float(lost / variance) == pytest.approx(float(axes.explained_K[rank - 1]), abs=1e-5)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=40), st.floats(0.1, 1), st.sampled_from([1, 4, 16]))
def test_the_rank_is_the_smallest_multiple_that_keeps_the_share(
    variances: list[float], share: float, multiple: int
) -> None:
    spread = torch.tensor(sorted(variances, reverse=True), dtype=torch.float64)
    explained_K = spread.cumsum(0) / spread.sum()
    rank = PrincipalAxes(torch.zeros(1), torch.zeros(1), explained_K).smallest_rank(share, multiple)
    assert rank == len(explained_K) or (rank % multiple == 0 and explained_K[rank - 1] >= share)
    if rank > multiple:
        smaller = (rank - 1) // multiple * multiple
        assert explained_K[smaller - 1] < share


def test_all_axes_give_the_same_states() -> None:
    model = demo_student()
    factored = compressed(model, ALL, should_replace=lambda *_: True)
    assert set(factored.config.low_rank.values()) == {192}
    torch.testing.assert_close(states(factored), states(model), atol=1e-5, rtol=1e-5)


def test_layers_are_kept_if_a_pair_would_not_be_smaller() -> None:
    model = demo_student()
    same, report = factor_encoder(model, ALL, Noise(model))
    assert same is model
    assert not any(layer["replaced"] for layer in report.values())
    factored, report = factor_encoder(model, LowRankOptions(preset="acc"), Noise(model))
    assert factored.config.low_rank == {name: layer["rank"] for name, layer in report.items() if layer["replaced"]}
    for name, layer in report.items():
        assert layer["replaced"] == saves_weights(layer["rank"], model.get_submodule(name))
        share = 0.999 if name.endswith(("fc1", "fc2")) else 0.99
        assert layer["kept"] >= share
    assert count_parameters_m(factored)["encoder"] < count_parameters_m(model)["encoder"]
    assert encoder_macs_m(factored) < encoder_macs_m(model)


def test_memory_does_not_grow_with_the_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a covariance [D, D] is held for each layer between clips, for fc1 and fc2 too."""
    widths: list[int] = []
    monkeypatch.setattr(module, "Covariance", lambda width: widths.append(width) or Covariance(width))
    compressed(demo_student(), LowRankOptions(preset="fast"))
    assert widths == [192] * 24


def test_a_folder_loads_as_it_was_saved_without_running_its_code(
    narrow: SottovoceForConditionalGeneration, tmp_path: Path
) -> None:
    save_model(narrow, tmp_path, processors=TEACHER)
    (tmp_path / "modeling_sottovoce.py").write_text("raise SystemExit('run')")
    loaded = load_model(tmp_path)
    assert torch.equal(states(loaded), states(narrow))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["low_rank"] == narrow.config.low_rank
    assert "model.encoder.layers.0.fc1.1.weight" in load_file(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config | {"low_rank": {"model.encoder.layers.9.fc1": 16}}))
    with pytest.raises(UserError, match=r"expected a Whisper checkpoint"):
        load_model(tmp_path)


def test_a_folder_without_pairs_is_a_plain_whisper() -> None:
    assert type(load_model(TEACHER)) is WhisperForConditionalGeneration


PLAIN = """
import sys, torch
from transformers import AutoModelForSpeechSeq2Seq
model = AutoModelForSpeechSeq2Seq.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert not any(name.split(".")[0] in ("eval", "distill", "recipes") for name in sys.modules)
with torch.no_grad():
    tokens = model.generate(torch.ones(1, 80, 700), max_new_tokens=8, do_sample=False)
    print(model.model.encoder(torch.ones(1, 80, 700)).last_hidden_state.double().sum().item(), tokens.tolist())
"""


def test_plain_transformers_loads_it_with_the_modelling_file_in_its_folder(
    narrow: SottovoceForConditionalGeneration, tmp_path: Path
) -> None:
    save_model(narrow, tmp_path / "model", processors=TEACHER)
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "model")]
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    total, tokens = done.stdout.split(maxsplit=1)
    mel = torch.ones(1, 80, 700)
    with torch.no_grad():
        assert float(total) == pytest.approx(
            narrow.model.encoder(mel).last_hidden_state.double().sum().item(), rel=1e-5
        )
        assert json.loads(tokens) == narrow.generate(mel, max_new_tokens=8, do_sample=False).tolist()


def test_cutting_layers_keeps_the_pairs_of_the_others(narrow: SottovoceForConditionalGeneration) -> None:
    shallow = cut_layers(narrow, [1, 3], [1])
    ranks = narrow.config.low_rank
    assert shallow.config.low_rank["model.encoder.layers.0.fc1"] == ranks["model.encoder.layers.1.fc1"]
    assert all(".layers.2." not in name for name in shallow.config.low_rank)
    first, second = narrow.model.encoder.layers[3].fc1, shallow.model.encoder.layers[1].fc1
    assert torch.equal(first[1].weight, second[1].weight)


def test_expanded_pairs_are_a_plain_whisper_with_the_same_states(narrow: SottovoceForConditionalGeneration) -> None:
    plain = expand_pairs(narrow, "test")
    assert type(plain) is WhisperForConditionalGeneration
    assert not hasattr(plain.config, "low_rank")
    torch.testing.assert_close(states(plain), states(narrow), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 90), ("int8", 25)])
def test_onnx_has_both_matrices_of_a_pair_and_equals_torch(
    narrow: SottovoceForConditionalGeneration, tmp_path: Path, precision: str, least_db: float
) -> None:
    import onnx

    save_model(narrow, tmp_path / "checkpoint", processors=TEACHER, drop_alignment_heads=True)
    write_layout(tmp_path / "checkpoint", tmp_path)
    (encoder, _) = export_onnx(narrow, tmp_path, [precision])[precision]  # type: ignore[list-item, index]
    assert parity_db(narrow, open_runtime("onnx", tmp_path, precision, 1), 6) > least_db
    graph = onnx.load(encoder).graph
    kind = {"fp32": onnx.TensorProto.FLOAT, "int8": onnx.TensorProto.INT8}[precision]
    shapes = [tuple(tensor.dims) for tensor in graph.initializer if tensor.data_type == kind and len(tensor.dims) == 2]
    rank = narrow.config.low_rank["model.encoder.layers.0.fc1"]
    assert {(192, rank), (rank, 768)} <= set(shapes)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"low_rank", "auto_map"} & config.keys()


@pytest.mark.parametrize("runtime", ["openvino", "ctranslate2"])
def test_other_runtimes_equal_torch(
    narrow: SottovoceForConditionalGeneration, tmp_path: Path, speech: Path, runtime: str
) -> None:
    pytest.importorskip(runtime)
    save_model(narrow, tmp_path / "checkpoint", processors=TEACHER, drop_alignment_heads=True)
    write_layout(tmp_path / "checkpoint", tmp_path)
    EXPORTERS[runtime](ExportSource(narrow, tmp_path / "checkpoint", []), tmp_path, ["fp32"])
    torch_side = Transcriber(TorchRuntime(narrow), tmp_path, "en")
    reference = TorchReference.measure(
        torch_side, [([str(next((speech / "train").glob("*.flac")))], None)], 8, str.lower
    )
    figures = compare_with_torch(reference, open_runtime(runtime, tmp_path, "fp32", 1), runtime)
    assert figures.min_psnr_db > 80
    assert figures.equal_text == 1


def test_static_graphs_scale_a_pair_once(narrow: SottovoceForConditionalGeneration) -> None:
    mel = torch.from_numpy(random_mel(narrow, 1))
    with torch.no_grad():
        static_BSD = StaticEncoder(narrow)(mel)["encoder_states"]
    torch.testing.assert_close(static_BSD, states(narrow), atol=1e-4, rtol=1e-4)


def test_a_compressed_encoder_is_never_shared_with_the_teacher(narrow: SottovoceForConditionalGeneration) -> None:
    device = torch.device("cpu")
    assert LiveTeacher(TEACHER, demo_student(), device, frozen=True, quantize=None).shares_encoder
    assert not LiveTeacher(TEACHER, narrow, device, frozen=True, quantize=None).shares_encoder


@pytest.mark.parametrize("encoder", [True, False])
def test_adapters_are_added_to_both_layers_of_a_pair_and_merged_again(
    narrow: SottovoceForConditionalGeneration, encoder: bool
) -> None:
    student = cut_layers(narrow, [0, 1, 2, 3], [0, 1])
    optimization.add_adapters(student, LoraOptions(rank=2), encoder=encoder)
    adapted = [name for name, weight in student.named_parameters() if weight.requires_grad]
    assert any("encoder.layers.0.fc1.0.lora" in name for name in adapted) == encoder
    assert any("encoder.layers.0.fc1.1.lora" in name for name in adapted) == encoder
    assert any("decoder.layers.0.fc1.lora" in name for name in adapted)
    merged = optimization.merge_adapters(student)
    assert merged.state_dict().keys() == narrow.state_dict().keys()
    torch.testing.assert_close(states(merged), states(narrow))
