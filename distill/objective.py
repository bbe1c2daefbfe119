"""One forward pass to the loss: encoder, both decoders, the LM head in chunks.

B batch, F mel bins, T mel frames, S encoder positions, D width, L tokens, N valid tokens.
"""

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from data_prep.augment import Augmentation
from data_prep.features import LogMel
from distill.batches import Batch
from distill.losses import Teaching, Weights, head_loss
from distill.teaching import LiveTeacher


class Objective(torch.nn.Module):
    """The student and its loss as one module, so that DDP and FSDP wrap the student and nothing else."""

    def __init__(
        self, student: WhisperForConditionalGeneration, weights: Weights, *, freeze_encoder: bool,
        teacher: LiveTeacher | None = None, augment: Augmentation | None = None,
    ):  # fmt: skip
        super().__init__()
        self.student, self.weights, self.freeze_encoder = student, weights, freeze_encoder
        self.log_mel = LogMel(student.config.num_mel_bins)
        # Not modules of this one: a frozen teacher is neither wrapped, synchronised nor saved.
        self._outside = (teacher, augment)

    def forward(self, batch: Batch, scale: float = 1.0) -> Tensor:
        """Sums [3] over the valid tokens of loss, CE and KL; the first carries the gradient.

        `scale` is the loss scale of fp16 training (`losses.head_loss`).
        """
        teacher, _ = self._outside
        mel_BFT = None if batch.encoder_BSD is not None else self.mel(batch)
        encoder_BSD = batch.encoder_BSD if mel_BFT is None else self.encode(mel_BFT)
        assert encoder_BSD is not None
        valid_BL, stored = batch.predicted, batch.stored
        live = teacher(mel_BFT, encoder_BSD, batch.inputs_BL, valid_BL) if teacher is not None else None

        def teaching(rows: slice) -> Teaching:
            if live is not None:
                return live(rows)
            return stored[rows] if stored is not None else None

        hidden_ND = self.decode(encoder_BSD, batch.inputs_BL)[valid_BL]
        labels_N = batch.labels_BL[valid_BL]
        return head_loss(hidden_ND, self.student.proj_out.weight, labels_N, teaching, self.weights, scale=scale)

    @torch.no_grad()
    def mel(self, batch: Batch) -> Tensor:
        """Log-mel [B, F, T], masked in training where the recipe augments."""
        mel_BFT: Tensor = self.log_mel(batch.samples_BN)
        augment = self._outside[1]
        if augment is not None and self.training:
            mel_BFT = augment.mask(mel_BFT, list(zip(batch.ids, batch.epochs, strict=True)))
        return mel_BFT

    def encode(self, mel_BFT: Tensor) -> Tensor:
        """Encoder states [B, S, D], without gradient where the encoder is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            states_BSD: Tensor = self.student.model.encoder(mel_BFT).last_hidden_state
            return states_BSD

    def decode(self, encoder_BSD: Tensor, inputs_BL: Tensor) -> Tensor:
        """Last hidden states [B, L, D] over the whole sequence, prompt included."""
        decoded = self.student.model.decoder(input_ids=inputs_BL, encoder_hidden_states=encoder_BSD, use_cache=False)
        hidden_BLD: Tensor = decoded.last_hidden_state
        return hidden_BLD
