"""Teacher and student read the same prompt, and neither is trained to predict it.

Compared with the usual formulation, in which the teacher gets labels whose prompt is masked.
"""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from data_prep.audio.torch_log_mel import LogMel
from distill.data.examples import IGNORED_LABEL, Example
from distill.data.training_batches import Batch, Collator
from distill.losses.distillation_loss import LossWeights, distillation_loss
from distill.training.objective import DistillationObjective
from eval.runtimes.torch_runtime import load_model
from tests.conftest import TEACHER
from tests.unit.labels import decoding, label

PREVIOUS = [30, 40, 41, 42]
"""In place of `<|startofprev|>` and text: any tokens show whether a model reads them."""


@pytest.fixture(scope="module")
def teacher() -> WhisperForConditionalGeneration:
    return load_model(TEACHER)


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(16_000) / 7), 16_000)
    spoken = label("a", plain=decoding([257, 258, 260, 264, 60, 61, 62, 256], 4), audio=str(tmp_path / "a.wav"))
    other = label("b", plain=decoding([257, 258, 260, 264, 70, 256], 4), audio=str(tmp_path / "a.wav"))
    return Collator(7 * 16_000, 256)([Example(spoken, spoken.plain, PREVIOUS), Example(other, other.plain, [])])


def divergence(student_NV: torch.Tensor, teacher_NV: torch.Tensor, batch: Batch) -> float:
    labels_N = batch.labels_BL[batch.labels_BL != IGNORED_LABEL]
    return float(distillation_loss(student_NV, labels_N, teacher_NV, LossWeights(0.0, 1.0, 2.0))[0][2] / len(labels_N))


def valid_logits(model: WhisperForConditionalGeneration, encoder_BSD: torch.Tensor, batch: Batch) -> torch.Tensor:
    objective = DistillationObjective(model, LossWeights(0.0, 1.0, 2.0), freeze_encoder=True)
    return model.proj_out(objective.decode(encoder_BSD, batch.inputs_BL)[batch.predicted])


@torch.no_grad()
def test_teacher_and_student_read_the_same_prompt(teacher: WhisperForConditionalGeneration, batch: Batch) -> None:
    states_BSD = teacher.model.encoder(LogMel(80)(batch.samples_BN)).last_hidden_state
    logits_NV = valid_logits(teacher, states_BSD, batch)
    assert divergence(logits_NV, valid_logits(teacher, states_BSD, batch), batch) == 0, "a model agrees with itself"
    # A teacher that gets labels only makes its inputs from them, as transformers does. The prompt is masked in the
    # labels and missing from these inputs, so that the same model disagrees with itself.
    rebuilt_BL = shift_tokens_right(batch.labels_BL, 256, 257)
    masked = Batch(batch.ids, batch.samples_BN, rebuilt_BL, batch.labels_BL)
    assert divergence(logits_NV, valid_logits(teacher, states_BSD, masked), batch) > 0.01


@torch.no_grad()
def test_the_prompt_changes_what_is_predicted(teacher: WhisperForConditionalGeneration, batch: Batch) -> None:
    states_BSD = teacher.model.encoder(LogMel(80)(batch.samples_BN)).last_hidden_state
    inputs_BL = batch.inputs_BL.clone()
    assert inputs_BL[0, : len(PREVIOUS)].tolist() == PREVIOUS
    inputs_BL[0, 1] += 5
    changed = Batch(batch.ids, batch.samples_BN, inputs_BL, batch.labels_BL)
    logits_NV, changed_NV = (valid_logits(teacher, states_BSD, variant) for variant in (batch, changed))
    predicted = int((batch.labels_BL[0] != IGNORED_LABEL).sum())
    assert (logits_NV[:predicted] - changed_NV[:predicted]).abs().max() > 1e-3
    torch.testing.assert_close(logits_NV[predicted:], changed_NV[predicted:])
