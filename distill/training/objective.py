"""One forward pass to the loss: encoder, both decoders, the LM head in chunks.

B batch, F mel bins, T mel frames, S encoder positions, D width, L tokens, N valid tokens.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import gelu, mse_loss, pad
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from data_prep.audio.augmentation import Augmentation
from data_prep.audio.torch_log_mel import LogMel
from distill.data.training_batches import Batch
from distill.losses.ctc_loss import CTCLoss
from distill.losses.distillation_loss import LossWeights, TeacherSignal, lm_head_loss
from distill.training.teacher_outputs import LiveTeacher
from eval.runtimes.log_mel import HOP


class DistillationObjective(torch.nn.Module):
    """The student and its loss as one module, so that DDP and FSDP wrap the student and nothing else."""

    def __init__(
        self, student: WhisperForConditionalGeneration, weights: LossWeights, *, freeze_encoder: bool,
        teacher: LiveTeacher | None = None, augment: Augmentation | None = None,
    ):  # fmt: skip
        super().__init__()
        self.student, self.weights, self.freeze_encoder = student, weights, freeze_encoder
        self.log_mel = LogMel(student.config.num_mel_bins)
        self.ctc = CTCLoss(student.config.d_model, student.config.vocab_size) if weights.ctc else None
        # Not modules of this one: a frozen teacher is neither wrapped, synchronised nor saved.
        self._outside = (teacher, augment)

    def of(self, student: WhisperForConditionalGeneration) -> "DistillationObjective":
        """The same loss of another student, bare of wrappers and of the auxiliary head."""
        teacher, augment = self._outside
        weights = replace(self.weights, ctc=0.0, hidden=0.0)
        other = DistillationObjective(
            student, weights, freeze_encoder=self.freeze_encoder, teacher=teacher, augment=augment
        )
        return other.to(student.device)

    def forward(self, batch: Batch, scale: float = 1.0) -> Tensor:
        """Sums [5] of loss, CE and KL over the valid tokens, of CTC over the utterances, and of the encoder's error.

        The first carries the gradient. The last is a mean over the states times the tokens, by which sums are divided.
        `scale` is the loss scale of fp16 training (`losses.head_loss`).
        """
        teacher, _ = self._outside
        mel_BFT = None if batch.encoder_BSD is not None else self.mel(batch)
        encoder_BSD = batch.encoder_BSD if mel_BFT is None else self.encode(mel_BFT)
        assert encoder_BSD is not None
        valid_BL, stored = batch.predicted, batch.stored
        heard_BSD = self.heard(batch, mel_BFT, encoder_BSD)
        live = teacher(heard_BSD, batch.inputs_BL, valid_BL) if teacher is not None and heard_BSD is not None else None

        def teaching(rows: slice) -> TeacherSignal:
            if live is not None:
                return live(rows)
            return stored[rows] if stored is not None else None

        hidden_ND = self.decode(encoder_BSD, batch.inputs_BL)[valid_BL]
        labels_N = batch.labels_BL[valid_BL]
        sums = lm_head_loss(hidden_ND, self.student.proj_out.weight, labels_N, teaching, self.weights, scale=scale)
        ctc = torch.zeros_like(sums[0])
        if self.ctc is not None and self.training:
            ctc = self.ctc(encoder_BSD, torch.tensor(batch.seconds), batch.texts)
        hidden = torch.zeros_like(sums[0])
        if self.weights.hidden and heard_BSD is not None:
            # A student of a shorter window is compared where it has states.
            heard_BSD = heard_BSD[:, : encoder_BSD.shape[1]].to(encoder_BSD.dtype)
            hidden = mse_loss(encoder_BSD, heard_BSD) * valid_BL.sum()
        total = sums[0] + self.weights.ctc * ctc + self.weights.hidden * hidden
        return torch.stack([total, sums[1], sums[2], ctc.detach(), hidden.detach()])

    @torch.no_grad()
    def heard(self, batch: Batch, mel_BFT: Tensor | None, encoder_BSD: Tensor) -> Tensor | None:
        """The live teacher's encoder states [B, S, D]: the student's own where both encoders are the same."""
        teacher = self._outside[0]
        if teacher is None or teacher.shares_encoder:
            return encoder_BSD if teacher is not None else None
        if mel_BFT is None or mel_BFT.shape[-1] < teacher.frames:
            mel_BFT = self.mel(batch, teacher.frames)
        states_BSD: Tensor = teacher.hear(mel_BFT)
        return states_BSD

    @torch.no_grad()
    def mel(self, batch: Batch, frames: int = 0) -> Tensor:
        """Log-mel [B, F, T] of at least so many frames, masked in training where the recipe augments."""
        samples_BN = batch.samples_BN
        mel_BFT: Tensor = self.log_mel(pad(samples_BN, (0, max(0, frames * HOP - samples_BN.shape[1]))))
        augment = self._outside[1]
        if augment is not None and self.training:
            mel_BFT = augment.mask(mel_BFT, list(zip(batch.ids, batch.epochs, batch.seconds, strict=True)))
        return mel_BFT

    def encode(self, mel_BFT: Tensor) -> Tensor:
        """Encoder states [B, S, D], without gradient where the encoder is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            encoder = self.student.model.encoder
            if mel_BFT.shape[-1] < 2 * encoder.config.max_source_positions:
                return _encode_short(encoder, mel_BFT)
            states_BSD: Tensor = encoder(mel_BFT).last_hidden_state
            return states_BSD

    def decode(self, encoder_BSD: Tensor, inputs_BL: Tensor) -> Tensor:
        """Last hidden states [B, L, D] over the whole sequence, prompt included."""
        decoded = self.student.model.decoder(input_ids=inputs_BL, encoder_hidden_states=encoder_BSD, use_cache=False)
        hidden_BLD: Tensor = decoded.last_hidden_state
        return hidden_BLD


def _encode_short(encoder: WhisperEncoder, mel_BFT: Tensor) -> Tensor:
    """States [B, S, D] of less than the window, which transformers' own forward refuses."""
    hidden_BDS = gelu(encoder.conv2(gelu(encoder.conv1(mel_BFT))))
    hidden_BSD = hidden_BDS.transpose(1, 2)
    hidden_BSD = hidden_BSD + encoder.embed_positions.weight[: hidden_BSD.shape[1]]
    for layer in encoder.layers:
        hidden_BSD = layer(hidden_BSD, None)
    states_BSD: Tensor = encoder.layer_norm(hidden_BSD)
    return states_BSD
