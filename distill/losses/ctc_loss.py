"""An auxiliary CTC loss on the encoder (Graves et al. 2006; beside attention: Kim et al. 2017, arXiv 1609.06773).

A decoder that starts from random weights has to find where in the audio each token lies, and learns the language first
instead. CTC forces an order in time on the encoder's states, after which cross-attention aligns quickly.

B batch, S encoder positions, D width, V vocabulary, L tokens.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import ctc_loss

SAMPLES_PER_POSITION = 320
"""Of 16 kHz audio: log-mel frames of 160, halved by the second convolution."""


class CTCLoss(torch.nn.Module):
    """A linear head from encoder states to the vocabulary and a blank; not part of the student that is kept."""

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.blank = vocabulary
        self.head = torch.nn.Linear(width, vocabulary + 1)

    def forward(
        self, encoder_BSD: torch.Tensor, seconds_B: torch.Tensor, texts: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """-log p(text | audio), summed over the batch.

        An utterance with more tokens than encoder positions cannot be aligned and counts nothing here.
        """
        positions = encoder_BSD.shape[1]
        lengths_B = (seconds_B * 16_000 / SAMPLES_PER_POSITION).ceil().long().clamp(1, positions)
        log_p_BSV = self.head(encoder_BSD).float().log_softmax(dim=-1)
        flat = torch.tensor([token for text in texts for token in text], device=encoder_BSD.device)
        counts_B = torch.tensor([len(text) for text in texts])
        return ctc_loss(
            log_p_BSV.transpose(0, 1), flat, lengths_B.cpu(), counts_B, self.blank, reduction="sum", zero_infinity=True
        )
