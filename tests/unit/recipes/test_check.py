"""The shape that `check` computes for a compressed student is the shape that compression produces."""

from pathlib import Path

import pytest

from distill.compression.context import CompressionContext
from distill.compression.pruning import prune_model
from distill.compression.window_shortening import shorten_window
from distill.models.saving import copy_processors
from recipes.core.errors import UserError
from recipes.core.whisper_shape import WhisperShape
from recipes.engine.check import compressed_shape
from recipes.schema.compress_section import CompressSection
from tests.conftest import TEACHER
from tests.unit.models import Noise, demo_student

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "section",
    [
        {"window": {"seconds": 5}},
        {"prune": {"encoder_layers": 3, "heads": 2, "ffn_width": 384}},
        {"prune": {"ffn_width": 400}},
        {"window": {"seconds": 4}, "prune": {"heads": 1}},
    ],
)
def test_parameters_are_counted_before_anything_runs(tmp_path: Path, section: dict[str, dict[str, int]]) -> None:
    copy_processors(TEACHER, tmp_path)
    options, model = CompressSection.model_validate(section), demo_student()
    expected = compressed_shape(WhisperShape.from_config(model.config.to_dict()), options)
    if options.window:
        model, _ = shorten_window(model, options.window, CompressionContext([], [], 1, tmp_path))
    if options.prune:
        model, _ = prune_model(model, options.prune, Noise(model))
    assert expected.parameters == sum(value.numel() for value in model.parameters())
    assert expected == WhisperShape.from_config(model.config.to_dict())


def test_pruning_the_decoder_keeps_the_encoder() -> None:
    student = WhisperShape.from_config(demo_student().config.to_dict())
    pruned = compressed_shape(student, CompressSection.model_validate({"prune": {"decoder_ffn_width": 304}}))
    assert pruned.ffn_widths == (768, 304)
    assert pruned.encoder_parameters == student.encoder_parameters


def test_keeping_more_than_the_student_has_is_refused() -> None:
    student = WhisperShape.from_config(demo_student().config.to_dict())
    for section, message in (
        ({"prune": {"heads": 4}}, "compress.prune.heads: expected 1 to 3, as many as the student has, found 4"),
        ({"window": {"seconds": 8}}, "compress.window.seconds: expected 1 to 7, as many as the student has, found 8"),
    ):
        with pytest.raises(UserError, match=message):
            compressed_shape(student, CompressSection.model_validate(section))
