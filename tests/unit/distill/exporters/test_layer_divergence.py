"""The export stage names the layer at which an artefact leaves torch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distill.export import within_tolerance
from distill.exporters.export_source import ExportSource
from distill.exporters.exporter_registry import EXPORTERS
from distill.exporters.folder_layout import write_layout
from distill.exporters.layer_divergence import first_diverging_layer
from distill.exporters.parity import ParityClip, TorchReference, compare_with_torch, forced_decoding
from distill.models.saving import save_model
from eval.decoding.transcriber import Transcriber
from eval.runtimes.registry import open_runtime
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from tests.conftest import TEACHER
from tests.unit.models import demo_student, random_mel

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("part", "layer"), [("encoder", 3), ("decoder", 2)])
def test_the_layer_with_outliers_is_named(tmp_path: Path, part: str, layer: int) -> None:
    model = demo_student()
    mlp = getattr(model.model, part).layers[layer - 1]
    # One channel of the activations so large that int8 leaves nothing of the others: torch says the same as before.
    with torch.no_grad():
        mlp.fc1.bias[0] += 20_000
        mlp.fc2.weight[:, 0] /= 1000
    source, folder = tmp_path / "checkpoint", tmp_path / "export"
    save_model(model, source, processors=TEACHER, decoder_layers=[0, 3])
    write_layout(source, folder)
    student = ExportSource(load_model(source), source, [])
    EXPORTERS["ctranslate2"](student, folder, ["int8"])
    transcriber = Transcriber(TorchRuntime(student.model), source, "en")
    mel_BFT, tokens = random_mel(model), np.random.default_rng(0).integers(0, 200, 6).tolist()
    states = forced_decoding(transcriber.runtime, mel_BFT, transcriber.format.prompt, tokens)
    reference = TorchReference(transcriber, [ParityClip(mel_BFT, *states, tokens, "", None)], 6, str.lower)
    row = compare_with_torch(reference, open_runtime("ctranslate2", folder, "int8", threads=1), "ctranslate2-int8")
    found = first_diverging_layer(student, "ctranslate2", "int8", reference, row, limit_db=24)
    assert found is not None
    assert (found.part, found.layer) == (part, layer)
    assert all(before > 24 for before in found.psnr_db[:-1])
    assert f"{part} layer {layer} is the first" in str(found)
    assert first_diverging_layer(student, "ctranslate2", "int8", reference, row, limit_db=-50) is None


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
def test_any_figure_beyond_its_limit_is_a_departure(
    psnr_db: float, equal_text: float, wer: tuple[float, float] | None, kept: bool
) -> None:
    row = {
        "encoder": {"psnr_db": psnr_db}, "logits": {"psnr_db": 80}, "equal_text": equal_text,
        "wer_increase": wer and {"value": wer[0], "low": wer[1], "high": 3.0},
    }  # fmt: skip
    assert within_tolerance(row, {"psnr_db": 50.0, "equal_text": 0.9, "wer_increase": 1.0}) is kept
