"""Mobile export: ONNX and LiteRT files compute what torch computes, without linear layers, as the manifest says."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from transformers import WhisperForConditionalGeneration

pytest.importorskip("litert_torch", reason="in an environment of its own; make interop")

from distill.exporters.export_source import ExportSource
from distill.exporters.mobile_graphs import export_mobile
from eval.audio.recordings import read_audio
from eval.decoding.transcriber import Transcriber
from eval.runtimes.interface import Runtime
from eval.runtimes.tflite_runtime import TfliteRuntime
from eval.runtimes.torch_runtime import TorchRuntime
from tests.conftest import TEACHER
from tests.unit.models import demo_student, parity_db, random_whisper

pytestmark = pytest.mark.usefixtures("one_thread")

RUNTIMES = ["onnx", "tflite"]


@dataclass
class Exported:
    model: WhisperForConditionalGeneration
    folder: Path

    def load(self, runtime: str) -> Runtime:
        """Open the files. Their tensors are equal, so that the LiteRT runtime class can drive ONNX Runtime too."""
        encoder, decoder = (self.folder / "mobile" / f"{part}.{runtime}" for part in ("encoder", "decoder"))
        if runtime == "tflite":
            return TfliteRuntime(encoder, decoder, threads=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("eval.runtimes.tflite_runtime._Graph", OnnxGraph)
            return TfliteRuntime(encoder, decoder, threads=1)


class OnnxGraph:
    """Replacement for `eval.runtimes.tflite_runtime._Graph` that runs ONNX Runtime."""

    def __init__(self, path: Path, threads: int):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.path = path
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.shapes = {value.name: tuple(value.shape) for value in self.session.get_inputs()}
        self.output_shapes = {value.name: tuple(value.shape) for value in self.session.get_outputs()}
        self.inputs: dict[str, np.ndarray] = {}

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.inputs |= inputs
        names = [value.name for value in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, self.inputs), strict=True))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A student with one encoder layer: converting all four takes 20 s, and texts must be equal, not correct."""
    model, folder = demo_student(encoder_layers=1), tmp_path_factory.mktemp("demo")
    export_mobile(ExportSource(model, TEACHER, []), folder)
    return Exported(model, folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model, folder = random_whisper(), tmp_path_factory.mktemp("small")
    export_mobile(ExportSource(model, TEACHER, []), folder)
    return Exported(model, folder)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("which", "tokens"), [("demo", 60), ("small", 21)])
def test_files_equal_torch(request: pytest.FixtureRequest, which: str, tokens: int, runtime: str) -> None:
    exported: Exported = request.getfixturevalue(which)
    assert parity_db(exported.model, exported.load(runtime), tokens) > 110


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_greedy_text_is_equal(demo: Exported, speech: Path, runtime: str) -> None:
    clips = [read_audio([str(path)]) for path in sorted((speech / "test").glob("*.flac"))[:2]]
    torch_transcriber = Transcriber(TorchRuntime(demo.model), TEACHER, "en")
    mobile_transcriber = Transcriber.with_runtime(torch_transcriber, demo.load(runtime))
    expected = torch_transcriber.transcribe(clips, exact_tokens=20)
    found = mobile_transcriber.transcribe(clips, exact_tokens=20)
    assert [row.tokens for row in found] == [row.tokens for row in expected]


def test_linear_layers_are_convolutions_per_head(small: Exported) -> None:
    for part, layers in (("encoder", 1), ("decoder", 2)):
        graph = onnx.load(small.folder / "mobile" / f"{part}.onnx").graph
        kinds = Counter(node.op_type for node in graph.node)
        assert not kinds.keys() & {"Gemm", "Loop", "If", "Attention"}
        attentions = layers * (2 if part == "decoder" else 1)
        assert kinds["MatMul"] == 2 * 2 * attentions  # scores and attended values of two heads
        # Encoder: conv1, conv2, three per head, the output projection, two in the feed-forward block, and the
        # cross-attention keys and values of two decoder layers.
        assert kinds["Conv"] == (2 + 3 * 2 + 1 + 2 + 2 * 2 * 2 if part == "encoder" else 2 * (7 + 3 + 2) + 1)
        constants = {tensor.name for tensor in graph.initializer}
        assert not any(constants & set(node.input) for node in graph.node if node.op_type == "MatMul")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_vocabulary_is_stored_once(demo: Exported, runtime: str) -> None:
    weights = sum(parameter.numel() for parameter in demo.model.model.decoder.parameters())
    size = (demo.folder / "mobile" / f"decoder.{runtime}").stat().st_size
    assert size < 4 * weights + 200_000


def test_manifest_agrees_with_the_files(small: Exported) -> None:
    manifest = json.loads((small.folder / "mobile" / "manifest.json").read_text())
    assert set(manifest["files"]) == set(RUNTIMES)
    assert manifest["cache"]["length"] == 24
    for part in ("encoder", "decoder"):
        session = onnxruntime.InferenceSession(str(small.folder / "mobile" / manifest["files"]["onnx"][part]))
        for side, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            kinds = {"tensor(float)": "float32", "tensor(int32)": "int32"}
            found = [(value.name, value.shape, kinds[value.type]) for value in values]
            assert [(row["name"], row["shape"], row["dtype"]) for row in manifest[part][side]] == found
