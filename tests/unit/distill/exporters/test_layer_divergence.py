"""The export stage finds the layer at which an artefact diverges from PyTorch, and fails beyond the tolerance."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distill.exporters.export_source import ExportSource
from distill.exporters.exporter_registry import EXPORTERS
from distill.exporters.folder_layout import write_layout
from distill.exporters.layer_divergence import LayerDivergence, first_diverging_layer
from distill.exporters.parity import (
    ArrayError,
    ParityClip,
    ParityFigures,
    TorchReference,
    compare_with_torch,
    forced_decoding,
)
from distill.exporters.parity_verdict import ParityLimits, ParityRow
from distill.models.saving import save_model
from eval.decoding.transcriber import Transcriber
from eval.runtimes.registry import open_runtime
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from eval.scoring.accuracy_rows import Interval
from tests.conftest import TEACHER
from tests.unit.models import demo_student, random_mel

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("part", "layer"), [("encoder", 3), ("decoder", 2)])
def test_the_layer_with_outliers_is_found(tmp_path: Path, part: str, layer: int) -> None:
    model = demo_student()
    mlp = getattr(model.model, part).layers[layer - 1]
    # Make one channel of the activations so large that int8 rounds the others to zero; PyTorch's result is unchanged.
    with torch.no_grad():
        mlp.fc1.bias[0] += 20_000
        mlp.fc2.weight[:, 0] /= 1000
    source, folder = tmp_path / "checkpoint", tmp_path / "export"
    save_model(model, source, processors=TEACHER, drop_alignment_heads=True)
    write_layout(source, folder)
    student = ExportSource(load_model(source), source, [])
    EXPORTERS["ctranslate2"](student, folder, ["int8"])
    transcriber = Transcriber(TorchRuntime(student.model), source, "en")
    mel_BFT, tokens = random_mel(model), np.random.default_rng(0).integers(0, 200, 6).tolist()
    states = forced_decoding(transcriber.runtime, mel_BFT, transcriber.format.prompt, tokens)
    reference = TorchReference(transcriber, [ParityClip(mel_BFT, *states, tokens, "", None)], 6, str.lower)
    figures = compare_with_torch(reference, open_runtime("ctranslate2", folder, "int8", threads=1), "ctranslate2-int8")
    divergence = first_diverging_layer(student, "ctranslate2", "int8", reference, figures, min_psnr_db=24)
    assert divergence is not None
    assert (divergence.part, divergence.layer) == (part, layer)
    assert all(psnr_db > 24 for psnr_db in divergence.psnr_db[:-1])
    assert f"{part} layer {layer} is the first" in divergence.describe()
    assert first_diverging_layer(student, "ctranslate2", "int8", reference, figures, min_psnr_db=-50) is None


@pytest.mark.parametrize(
    ("psnr_db", "equal_text", "wer", "kept"),
    [
        (50, 0.9, None, True),
        (50, 0.9, (1.0, 0.4), True),
        (50, 0.9, (1.2, 0.0), False),
        (49, 0.9, None, False),
        (50, 0.8, None, False),
    ],
)
def test_every_figure_must_be_within_its_limit(
    psnr_db: float, equal_text: float, wer: tuple[float, float] | None, kept: bool
) -> None:
    wer_increase = Interval(wer[0], wer[1], 3.0) if wer else None
    figures = ParityFigures(ArrayError(1.0, 0.1, psnr_db), ArrayError(1.0, 0.1, 80), equal_text, wer_increase)
    row = ParityRow("onnx-fp16", "onnx", "fp16", 1.5, figures, ParityLimits(50.0, 0.9, 1.0))
    assert row.kept is kept


def test_a_row_has_the_keys_that_the_report_reads() -> None:
    error, limits = ArrayError(0.5, 0.1, 40.0), ParityLimits(50.0, 0.9, 1.0)
    figures = ParityFigures(error, error, 1.0, Interval(0.5, -0.5, 1.5))
    divergence = LayerDivergence("encoder", 2, [60.0, 40.0])
    row = ParityRow("onnx-fp16", "onnx", "fp16", 1.5, figures, limits, divergence)
    array = {"max_abs": 0.5, "mean_abs": 0.1, "psnr_db": 40.0}
    assert row.to_json() == {
        "name": "onnx-fp16", "runtime": "onnx", "precision": "fp16", "size_mb": 1.5, "encoder": array, "logits": array,
        "equal_text": 1.0, "wer_increase": {"value": 0.5, "low": -0.5, "high": 1.5},
        "tolerance": {"psnr_db": 50.0, "equal_text": 0.9, "wer_increase": 1.0}, "kept": False,
        "first_departure": divergence.describe(),
    }  # fmt: skip
    assert row.describe().endswith(f"at most +1); {divergence.describe()}")
