"""Shortened window: only the first positions are kept, and every file that other loaders read agrees."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.compression.context import CompressionContext
from distill.compression.window_shortening import shorten_window
from distill.models.model_size import encoder_macs_m
from distill.models.saving import copy_processors, save_model
from distill.training.teacher_outputs import LiveTeacher
from eval.decoding.transcriber import Transcriber
from eval.runtimes.model_format import ModelFormat
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from recipes.core.errors import UserError
from recipes.schema.compress_section import WindowOptions
from tests.conftest import TEACHER
from tests.unit.distill.training.test_objective import WEIGHTS, DistillationObjective, batch  # noqa: F401
from tests.unit.models import demo_student

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def context(tmp_path: Path) -> CompressionContext:
    (folder := tmp_path / "processors").mkdir()
    copy_processors(TEACHER, folder)
    return CompressionContext([], [], 1, folder)


def test_the_student_keeps_the_first_positions(context: CompressionContext, tmp_path: Path) -> None:
    model = demo_student()
    student, report = shorten_window(model, WindowOptions(seconds=4), context)
    assert report == {"of": 350, "positions": 200}
    assert torch.equal(student.model.encoder.embed_positions.weight, model.model.encoder.embed_positions.weight[:200])
    assert encoder_macs_m(student) < 0.6 * encoder_macs_m(model)
    save_model(student, tmp_path / "student", processors=context.processors)
    assert ModelFormat.load(tmp_path / "student", "en", "transcribe").window_samples == 4 * 16_000
    features = json.loads((tmp_path / "student" / "preprocessor_config.json").read_text())
    assert (features["chunk_length"], features["nb_max_frames"]) == (4, 400)
    inner = json.loads((tmp_path / "student" / "processor_config.json").read_text())["feature_extractor"]
    assert {key: inner[key] for key in ("chunk_length", "n_samples")} == {"chunk_length": 4, "n_samples": 64_000}
    transcriber = Transcriber(TorchRuntime(load_model(tmp_path / "student")), tmp_path / "student", "en")
    assert isinstance(transcriber.transcribe([np.zeros(16_000, np.float32)])[0].text, str)


def test_the_full_window_changes_nothing_and_a_longer_one_is_refused(context: CompressionContext) -> None:
    model = demo_student()
    student, _ = shorten_window(model, WindowOptions(seconds=7), context)
    assert all(torch.equal(student.state_dict()[name], value) for name, value in model.state_dict().items())
    with pytest.raises(UserError, match=r"compress.window.seconds: expected 1 to 7, .* found 8"):
        shorten_window(model, WindowOptions(seconds=8), context)


def test_a_live_teacher_gets_its_own_window(context: CompressionContext, batch: Any) -> None:  # noqa: F811
    """Audio cut to the student's window, padded with silence to the teacher's: what each hears when it runs alone."""
    student, _ = shorten_window(demo_student(), WindowOptions(seconds=4), context)
    teacher = LiveTeacher(TEACHER, student, torch.device("cpu"), frozen=True, quantize=None)
    assert not teacher.shares_encoder
    objective = DistillationObjective(student, replace(WEIGHTS, hidden=1.0), freeze_encoder=True, teacher=teacher)
    short = replace(batch, samples_BN=batch.samples_BN[:, : 4 * 16_000])
    padded = torch.nn.functional.pad(short.samples_BN, (0, 3 * 16_000))
    mel_BFT = objective.mel(short)
    assert mel_BFT.shape[-1] == 400
    with torch.no_grad():
        heard_BSD = objective.teacher_states(short, mel_BFT, objective.encode(mel_BFT))
        expected_BSD = load_model(TEACHER).model.encoder(objective.log_mel(padded)).last_hidden_state
    torch.testing.assert_close(heard_BSD, expected_BSD, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(objective(short)).all()


def test_a_feature_extractor_of_another_window_is_refused(context: CompressionContext, tmp_path: Path) -> None:
    student, _ = shorten_window(demo_student(), WindowOptions(seconds=4), context)
    save_model(student, tmp_path / "student", processors=context.processors)
    shutil.copyfile(TEACHER / "preprocessor_config.json", tmp_path / "student" / "preprocessor_config.json")
    with pytest.raises(UserError, match="expected n_samples 64000 for the 200 encoder positions"):
        ModelFormat.load(tmp_path / "student", "en", "transcribe")
