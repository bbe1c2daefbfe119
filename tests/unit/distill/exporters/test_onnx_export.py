"""ONNX export: graphs equal Hugging Face's, files compute what torch computes, names and weights suit the loaders."""

import hashlib
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperForConditionalGeneration

from distill.exporters import onnx_export
from distill.exporters.onnx_export import SUFFIX, export_onnx
from distill.exporters.onnx_quantize import quantize_rows
from distill.exporters.whisper_graphs import DecoderFirstGraph, DecoderWithPastGraph, EncoderGraph
from eval.runtimes.onnx_runtime import OnnxRuntime
from eval.runtimes.registry import open_runtime
from recipes.core.errors import UserError
from tests.unit.models import psnr, random_mel, random_whisper, token_steps, torch_steps

VOCABULARY, WIDTH, HEADS = 600, 64, 2
PRECISIONS = ["fp32", "fp16", "int8"]
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "encoder_ffn_dim": 2 * WIDTH, "decoder_ffn_dim": 2 * WIDTH,
    "max_target_positions": 40,
}  # fmt: skip
MULTILINGUAL = {"num_mel_bins": 80, "encoder_layers": 2, "decoder_layers": 1, "max_source_positions": 50}
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Exported:
    model: WhisperForConditionalGeneration
    folder: Path
    files: dict[str, list[Path]]
    traced: tuple[onnx.ModelProto, onnx.ModelProto, onnx.ModelProto]


@pytest.fixture(scope="module", params=["multilingual-80", "short-128"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = random_whisper(**SHAPE | (MULTILINGUAL if request.param == "multilingual-80" else {}))
    folder = tmp_path_factory.mktemp(request.param)
    traced = onnx_export.trace_graphs(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "trace_graphs", lambda _: traced)
        files = export_onnx(model, folder, PRECISIONS)
    return Exported(model, folder, files, traced)


@settings(max_examples=8, deadline=None)
@given(
    mel=st.sampled_from([80, 128]),
    encoder_layers=st.integers(1, 3),
    decoder_layers=st.integers(1, 3),
    positions=st.integers(4, 60),
    batch=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 4), min_size=2, max_size=5),
)
@torch.no_grad()
def test_graphs_equal_hugging_face(
    mel: int, encoder_layers: int, decoder_layers: int, positions: int, batch: int, lengths: list[int]
) -> None:
    model = random_whisper(
        **SHAPE, num_mel_bins=mel, encoder_layers=encoder_layers, decoder_layers=decoder_layers,
        max_source_positions=positions,
    )  # fmt: skip
    mel_BFT, steps = random_mel(model, batch), token_steps(model, batch, lengths)
    expected_BSD, expected = torch_steps(model, mel_BFT, steps)
    encoder_BSD = EncoderGraph(model)(torch.from_numpy(mel_BFT))
    assert np.abs(encoder_BSD.numpy() - expected_BSD).max() < 1e-4
    first, with_past = DecoderFirstGraph(model), DecoderWithPastGraph(model)
    logits, *caches = first(torch.from_numpy(steps[0]), encoder_BSD)
    assert np.abs(logits[:, -1].numpy() - expected[0]).max() < 1e-4
    assert [cache.shape[2] for cache in caches] == [
        lengths[0],
        lengths[0],
        positions,
        positions,
    ] * decoder_layers
    for tokens_BL, expected_BV in zip(steps[1:], expected[1:], strict=True):
        logits, *own = with_past(torch.from_numpy(tokens_BL), *caches)
        assert np.abs(logits[:, -1].numpy() - expected_BV).max() < 1e-4
        caches = [
            cache for i in range(decoder_layers) for cache in (*own[2 * i : 2 * i + 2], *caches[4 * i + 2 : 4 * i + 4])
        ]


def test_untied_head_is_refused() -> None:
    model = random_whisper()
    model.proj_out.weight = torch.nn.Parameter(torch.zeros_like(model.proj_out.weight))
    with pytest.raises(ValueError, match="proj_out"):
        DecoderFirstGraph(model)


def test_float16_model_and_unknown_precision_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="float32"):
        export_onnx(random_whisper().half(), tmp_path, ["fp32"])
    with pytest.raises(ValueError, match="int4"):
        export_onnx(random_whisper(), tmp_path, ["int4"])  # type: ignore[list-item]


# Smallest 20 log10(largest expected value / root mean square error), dB.
@pytest.mark.parametrize(("precision", "psnr_db"), [("fp32", 100), ("fp16", 60), ("int8", 30)])
@pytest.mark.parametrize("batch", [1, 3])
def test_runtime_equals_torch(exported: Exported, precision: str, psnr_db: float, batch: int) -> None:
    runtime = OnnxRuntime(exported.folder, precision, threads=1)
    mel_BFT, steps = random_mel(exported.model, batch), token_steps(exported.model, batch, [4, 1, 1, 3, 1, 1])
    expected_BSD, expected = torch_steps(exported.model, mel_BFT, steps)
    state = runtime.encode(mel_BFT)
    assert psnr(expected_BSD, state.encoder_BSD) > psnr_db
    for tokens_BL, expected_BV in zip(steps, expected, strict=True):
        logits_BV, state = runtime.step(tokens_BL, state)
        assert logits_BV.shape == (batch, VOCABULARY)
        assert logits_BV.dtype == np.float32
        assert psnr(expected_BV, logits_BV) > psnr_db


def test_fp32_greedy_tokens_are_equal(exported: Exported) -> None:
    runtime = OnnxRuntime(exported.folder, "fp32", threads=1)
    mel_BFT, prompt = random_mel(exported.model, 2), np.full((2, 1), 3, np.int64)
    steps, state = [prompt], runtime.encode(mel_BFT)
    for _ in range(30):
        logits_BV, state = runtime.step(steps[-1], state)
        steps.append(logits_BV.argmax(axis=1)[:, None])
    _, expected = torch_steps(exported.model, mel_BFT, steps[:-1])
    assert [row.argmax(axis=1).tolist() for row in expected] == [step[:, 0].tolist() for step in steps[1:]]


def test_encoder_attention_is_one_operator_per_layer(exported: Exported) -> None:
    graph = onnx.load(exported.folder / "onnx" / "encoder_model.onnx").graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["MultiHeadAttention"] == exported.model.config.encoder_layers
    assert not kinds["Softmax"]


def test_a_state_can_be_continued_twice(exported: Exported) -> None:
    runtime = OnnxRuntime(exported.folder, "fp32", threads=1)
    prompt, token, other_token = token_steps(exported.model, 1, [4, 1, 1])
    _, state = runtime.step(prompt, runtime.encode(random_mel(exported.model, 1)))
    before, _ = runtime.step(token, state)
    runtime.step(other_token, state)
    after, _ = runtime.step(token, state)
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_names_and_files_are_those_of_transformers_js(exported: Exported, precision: str) -> None:
    suffix, layers = SUFFIX[precision], exported.model.config.decoder_layers
    expected = [f"encoder_model{suffix}.onnx", f"decoder_model_merged{suffix}.onnx"]
    assert exported.files[precision] == [exported.folder / "onnx" / name for name in expected]
    encoder, decoder = (onnx.load(path) for path in exported.files[precision])
    assert names(encoder.graph.input) == ["input_features"]
    assert names(encoder.graph.output) == ["last_hidden_state"]
    cache = [
        f"{n}.{side}.{part}" for n in range(layers) for side in ("decoder", "encoder") for part in ("key", "value")
    ]
    past = [f"past_key_values.{name}" for name in cache]
    assert names(decoder.graph.input) == ["input_ids", "encoder_hidden_states", *past, "use_cache_branch"]
    assert names(decoder.graph.output) == ["logits", *(f"present.{name}" for name in cache)]
    onnx.checker.check_model(decoder, full_check=True)
    onnx.checker.check_model(encoder, full_check=True)


def names(values: list[onnx.ValueInfoProto]) -> list[str]:
    return [value.name for value in values]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_weight_is_stored_once(exported: Exported, precision: str) -> None:
    decoder = onnx.load(exported.files[precision][1])
    assert sum(np.prod(tensor.dims) == VOCABULARY * WIDTH for tensor in decoder.graph.initializer) == 1
    weights = [t.raw_data for t in decoder.graph.initializer if np.prod(t.dims) >= WIDTH * WIDTH]
    assert len(weights) == len(set(weights))
    (if_node,) = (node for node in decoder.graph.node if node.op_type == "If")
    assert [len(attribute.g.initializer) for attribute in if_node.attribute] == [0, 0]
    parameters = sum(parameter.numel() for parameter in exported.model.model.decoder.parameters())
    overhead = 1.2 if precision == "int8" else 1.05
    assert sum(np.prod(tensor.dims) for tensor in decoder.graph.initializer) < overhead * parameters


@pytest.mark.parametrize(("precision", "kind"), [("fp16", onnx.TensorProto.FLOAT16), ("int8", onnx.TensorProto.INT8)])
def test_no_matrix_is_stored_wider_than_its_precision(exported: Exported, precision: str, kind: int) -> None:
    for file in exported.files[precision]:
        stored = onnx.load(file).graph.initializer
        # The scales of int8 rows have axes of length 1, and the empty cache has no values.
        matrices = [t for t in stored if len(t.dims) > 1 and np.prod(t.dims) > max(t.dims)]
        assert {t.data_type for t in matrices} == {kind}


@settings(deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 9), magnitude=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_int8_rows_are_within_half_a_step(rows: int, columns: int, magnitude: float, seed: int) -> None:
    weight = magnitude * np.random.default_rng(seed).standard_normal((rows, columns, 3)).astype(np.float32)
    weight[0] = 0  # a row of zeros needs a scale other than 0
    values, scale = quantize_rows(weight)
    assert values.dtype == np.int8
    assert scale.shape == (rows, 1, 1)
    assert (np.abs(values * scale - weight) <= 0.501 * scale).all()


def test_optimums_placeholder_of_length_one_is_ignored_by_the_first_step(exported: Exported) -> None:
    runtime = OnnxRuntime(exported.folder, "fp32", threads=1)
    state, (prompt,) = runtime.encode(random_mel(exported.model, 1)), token_steps(exported.model, 1, [4])
    expected, _ = runtime.step(prompt, state)
    session = runtime._decoder
    feeds = {
        value.name: np.ones((1, HEADS, 1, WIDTH // HEADS), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    feeds |= {
        "input_ids": prompt,
        "encoder_hidden_states": state.encoder_BSD,
        "use_cache_branch": np.array([False]),
    }
    np.testing.assert_array_equal(session.run(["logits"], feeds)[0][:, -1], expected)


@pytest.mark.parametrize("exported", ["short-128"], indirect=True)
def test_equal_weights_give_equal_bytes(exported: Exported, tmp_path: Path) -> None:
    again = export_onnx(exported.model, tmp_path, PRECISIONS)
    for precision, paths in exported.files.items():
        assert [digest(path) for path in again[precision]] == [digest(path) for path in paths]


def test_weights_too_large_for_one_file_get_a_second(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "trace_graphs", lambda _: exported.traced)
    monkeypatch.setattr(onnx_export, "SINGLE_FILE_BYTES", 0)
    files = export_onnx(exported.model, tmp_path, PRECISIONS)
    assert [path.name for path in files["fp16"]][1::2] == [
        "encoder_model_fp16.onnx_data",
        "decoder_model_merged_fp16.onnx_data",
    ]
    mel_BFT, (prompt,) = random_mel(exported.model, 1), token_steps(exported.model, 1, [4])
    for precision in PRECISIONS:
        single, external = (OnnxRuntime(folder, precision, threads=1) for folder in (exported.folder, tmp_path))
        logits_BV, _ = external.step(prompt, external.encode(mel_BFT))
        np.testing.assert_array_equal(logits_BV, single.step(prompt, single.encode(mel_BFT))[0])


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("damage", ["missing", "truncated", "rubbish", "empty"])
def test_damaged_file_is_a_user_error(exported: Exported, tmp_path: Path, damage: str) -> None:
    (tmp_path / "onnx").mkdir()
    encoder, decoder = exported.files["fp32"]
    (tmp_path / "onnx" / encoder.name).write_bytes(encoder.read_bytes())
    content = decoder.read_bytes()
    broken = {"truncated": content[: len(content) // 2], "rubbish": b"not a model", "empty": b""}
    if damage != "missing":
        (tmp_path / "onnx" / decoder.name).write_bytes(broken[damage])
    with pytest.raises(UserError, match=decoder.name) as raised:
        OnnxRuntime(tmp_path, "fp32", threads=1)
    assert "\n" not in str(raised.value)


def test_unknown_precision_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="int4"):
        open_runtime("onnx", tmp_path, "int4", threads=1)


def test_runtime_needs_neither_torch_nor_onnx() -> None:
    heavy = "{'torch', 'transformers', 'onnx'} & set(sys.modules)"
    program = f"import sys, eval.runtimes.onnx_runtime, onnxruntime; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", program], check=True)
