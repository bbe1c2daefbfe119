"""Export after each compression method and three chains: ONNX and LiteRT files compute what torch computes."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from distill.compress import METHODS
from distill.exporters.export_source import ExportSource
from distill.exporters.exporter_registry import EXPORTERS
from distill.exporters.folder_layout import write_layout
from distill.models.cutting import cut_layers
from distill.models.model_size import count_parameters_m
from distill.models.saving import copy_processors, save_model
from eval.runtimes.registry import open_runtime
from eval.runtimes.torch_runtime import load_model
from recipes.schema.compress_section import CompressSection
from recipes.schema.export_section import Precision
from tests.conftest import TEACHER
from tests.unit.models import Noise, parity_db

pytestmark = pytest.mark.usefixtures("one_thread")

FAST = {"preset": "fast"}
CASES: dict[str, dict[str, Any]] = {
    "window": {"window": {"seconds": 3}},
    "vocabulary": {"vocabulary": {}},
    "layers": {"prune": {"encoder_layers": 1}},
    "heads": {"prune": {"heads": 2}},
    "neurons": {"prune": {"ffn_width": 320, "decoder_ffn_width": 256}},
    "low-rank": {"low_rank": FAST},
    "heads-low-rank": {"prune": {"heads": 1}, "low_rank": FAST},
    "window-vocabulary": {"window": {"seconds": 3}, "vocabulary": {}},
    "all": {
        "window": {"seconds": 3}, "vocabulary": {},
        "prune": {"encoder_layers": 1, "heads": 2, "ffn_width": 320, "decoder_ffn_width": 256}, "low_rank": FAST,
    },
}  # fmt: skip
RUNTIMES = [
    "onnx",
    pytest.param("tflite", marks=pytest.mark.skipif(not find_spec("litert_torch"), reason="make interop runs it")),
]
LEAST_DB: dict[Precision, float] = {"fp32": 80, "int8": 12}
"""Smallest PSNR. Random clips are unlike the training audio: the int8 error is larger on them than on speech."""


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", CASES)
def test_a_compressed_student_equals_torch_after_export(name: str, runtime: str, tmp_path: Path) -> None:
    original = cut_layers(load_model(TEACHER), [0, 3], [3])
    context: Any = Noise(original)
    context.processors = tmp_path / "processors"
    context.processors.mkdir()
    copy_processors(TEACHER, context.processors)
    student = original
    for method, options in CompressSection(**CASES[name]).methods:
        student, _ = METHODS[method](student, options, context)
    before, after = (sum(count_parameters_m(model).values()) for model in (original, student))
    # The demo teacher's tokens are single bytes: only a shorter window leaves timestamp tokens that can be removed.
    assert after < before or name == "vocabulary"
    save_model(student, tmp_path / "student", processors=context.processors)
    write_layout(tmp_path / "student", folder := tmp_path / "model")
    EXPORTERS[runtime](ExportSource(student, tmp_path / "student", []), folder, list(LEAST_DB))
    for precision, least in LEAST_DB.items():
        assert parity_db(student, open_runtime(runtime, folder, precision, 1), 8) > least, precision
