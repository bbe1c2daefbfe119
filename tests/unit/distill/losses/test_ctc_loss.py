"""The auxiliary CTC loss against an enumeration of all alignments, and the encoder on less than its window."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from distill.data.examples import Example
from distill.data.training_batches import Collator
from distill.losses.ctc_loss import CTCLoss
from distill.losses.distillation_loss import LossWeights
from distill.training.objective import DistillationObjective
from eval.runtimes.torch_runtime import load_model
from tests.conftest import TEACHER
from tests.unit.labels import decoding, label


def by_enumeration(log_p_SV: torch.Tensor, text: list[int], blank: int) -> float:
    """Return -log of the summed probability of all paths that collapse to the text."""
    total = 0.0
    for path in itertools.product(range(log_p_SV.shape[1]), repeat=len(log_p_SV)):
        collapsed = [token for token, _ in itertools.groupby(path) if token != blank]
        if collapsed == text:
            total += float(log_p_SV[range(len(path)), path].sum().exp())
    return -float(np.log(total))


def test_the_loss_is_the_probability_of_all_alignments_within_the_clip() -> None:
    torch.manual_seed(0)
    ctc, states_BSD = CTCLoss(3, 2), torch.randn(2, 6, 3)
    loss = ctc(states_BSD, torch.tensor([4 * 0.02, 5 * 0.02 - 0.001]), [[0, 1], [1]])
    log_p_BSV = ctc.head(states_BSD).log_softmax(dim=-1).detach()
    expected = by_enumeration(log_p_BSV[0, :4], [0, 1], 2) + by_enumeration(log_p_BSV[1, :5], [1], 2)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_a_text_too_long_for_its_audio_contributes_zero() -> None:
    ctc = CTCLoss(3, 2)
    loss = ctc(torch.randn(1, 6, 3), torch.tensor([0.02]), [[0, 1, 0]])
    loss.backward()
    assert float(loss) == 0.0
    assert ctc.head.weight.grad is not None
    assert ctc.head.weight.grad.isfinite().all()


def test_the_objective_includes_ctc_in_training_only_and_the_encoder_takes_short_windows(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(16_000) / 7), 16_000)
    row = label("a", plain=decoding([257, 258, 260, 264, 60, 61, 256], 4), audio=str(tmp_path / "a.wav"))
    batch = Collator(7 * 16_000, 256, full_window=0.0)([Example(row, row.plain, [])])
    objective = DistillationObjective(load_model(TEACHER), LossWeights(1.0, 0.0, 2.0, ctc=0.5), freeze_encoder=False)
    with torch.no_grad():
        loss, ce, kl, ctc, _ = objective.train()(batch).tolist()
        assert ctc > 0
        assert loss == pytest.approx(ce + 0.5 * ctc, rel=1e-5)
        assert objective.eval()(batch).tolist() == pytest.approx([ce, ce, kl, 0.0, 0.0])
        mel_BFT = objective.mel(batch)
        assert objective.encode(mel_BFT).shape == (1, 50, 192)


def test_a_short_window_is_encoded_as_by_a_model_with_that_window() -> None:
    """Compared with transformers' own forward in a model whose window is that short."""
    model, mel_BFT = load_model(TEACHER), torch.randn(1, 80, 100)
    objective = DistillationObjective(model, LossWeights(1.0, 0.0, 2.0), freeze_encoder=True)
    short = objective.encode(mel_BFT)
    encoder = model.model.encoder
    encoder.config.max_source_positions = 50
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(encoder.embed_positions.weight[:50])
    torch.testing.assert_close(short, encoder(mel_BFT).last_hidden_state)
