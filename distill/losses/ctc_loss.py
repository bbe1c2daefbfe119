"""Auxiliary CTC loss on the encoder states.

CTC is due to Graves et al. (2006); its combination with an attention decoder to Kim et al. (2017, arXiv 1609.06773).

A decoder that starts from random weights has to find where in the audio each token lies. Without help it learns the
language first. CTC forces a monotonic alignment on the encoder states, after which cross-attention aligns quickly.

B batch, S encoder positions, D width, V vocabulary, L tokens.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import ctc_loss

from eval.audio.recordings import SAMPLE_RATE
from recipes.core.whisper_shape import POSITIONS_PER_SECOND

SAMPLES_PER_POSITION = SAMPLE_RATE // POSITIONS_PER_SECOND
"""Audio samples per encoder position: log-mel frames of 160 samples, halved by the second convolution."""


class CTCLoss(torch.nn.Module):
    """A linear head from encoder states to the vocabulary and a blank token, with the CTC loss of its output.

    The head is used in training only and is not saved with the student.

    Args:
        width: Width D of the encoder states.
        vocabulary: Number of tokens V; the blank token gets the id V.
    """

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.blank = vocabulary
        self.head = torch.nn.Linear(width, vocabulary + 1)

    def forward(
        self, encoder_BSD: torch.Tensor, seconds_B: torch.Tensor, texts: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Return -log p(text | audio), summed over the batch.

        Only the encoder positions within each clip's `seconds_B` count. An utterance with more tokens than encoder
        positions cannot be aligned and contributes zero.
        """
        positions = encoder_BSD.shape[1]
        lengths_B = (seconds_B * SAMPLE_RATE / SAMPLES_PER_POSITION).ceil().long().clamp(1, positions)
        log_p_BSV = self.head(encoder_BSD).float().log_softmax(dim=-1)
        tokens = torch.tensor([token for text in texts for token in text], device=encoder_BSD.device)
        counts_B = torch.tensor([len(text) for text in texts])
        return ctc_loss(
            log_p_BSV.transpose(0, 1), tokens, lengths_B.cpu(), counts_B, self.blank,
            reduction="sum", zero_infinity=True,
        )  # fmt: skip
