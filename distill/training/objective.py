"""The training objective: from a batch to its loss.

Log-mel, encoder, the decoders of student and teacher, and the LM head in chunks.

B batch, F mel bins, T mel frames, S encoder positions, D width, L tokens, N predicted tokens.
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
    """The student and its loss as one module, the one that DDP, FSDP or DeepSpeed wraps.

    Teacher and augmentation are not modules: the frozen teacher is neither wrapped nor synchronised nor saved.

    Args:
        student: The model to train.
        weights: Weights of the loss terms, and the temperature.
        freeze_encoder: Compute the encoder without gradients.
        teacher: The live teacher; None for a stored one or none.
        augmentation: SpecAugment masks for the log-mels in training.
    """

    def __init__(
        self, student: WhisperForConditionalGeneration, weights: LossWeights, *, freeze_encoder: bool,
        teacher: LiveTeacher | None = None, augmentation: Augmentation | None = None,
    ):  # fmt: skip
        super().__init__()
        self.student, self.weights, self.freeze_encoder = student, weights, freeze_encoder
        self.log_mel = LogMel(student.config.num_mel_bins)
        self.ctc = CTCLoss(student.config.d_model, student.config.vocab_size) if weights.ctc else None
        self.teacher: LiveTeacher | None = teacher
        self.augmentation: Augmentation | None = augmentation

    def for_student(self, student: WhisperForConditionalGeneration) -> "DistillationObjective":
        """Return the objective of another student, without wrappers and without the CTC and hidden-state losses."""
        weights = replace(self.weights, ctc=0.0, hidden=0.0)
        objective = DistillationObjective(
            student, weights, freeze_encoder=self.freeze_encoder, teacher=self.teacher, augmentation=self.augmentation
        )
        return objective.to(student.device)

    def forward(self, batch: Batch, scale: float = 1.0) -> Tensor:
        """Return the sums [5] of the total loss, CE, KL, CTC loss and hidden-state loss.

        CE and KL are summed over the predicted tokens, and the CTC loss over the utterances. The hidden-state loss is
        the mean squared error of the encoder states times the number of predicted tokens, because the trainer divides
        all sums by that number. Only the total loss carries a gradient. `scale` is the loss scale of fp16 training
        (`distill.losses.distillation_loss.lm_head_loss`).
        """
        mel_BFT = None if batch.encoder_BSD is not None else self.mel(batch)
        encoder_BSD = batch.encoder_BSD if mel_BFT is None else self.encode(mel_BFT)
        assert encoder_BSD is not None
        valid_BL, stored = batch.predicted, batch.stored
        teacher_BSD, teacher_logits = self.teacher_states(batch, mel_BFT, encoder_BSD), None
        if self.teacher is not None and teacher_BSD is not None:
            teacher_logits = self.teacher(teacher_BSD, batch.inputs_BL, valid_BL)

        def teacher_signal(rows: slice) -> TeacherSignal:
            if teacher_logits is not None:
                return teacher_logits(rows)
            return stored[rows] if stored is not None else None

        hidden_ND = self.decode(encoder_BSD, batch.inputs_BL)[valid_BL]
        labels_N = batch.labels_BL[valid_BL]
        head_VD = self.student.proj_out.weight
        sums = lm_head_loss(hidden_ND, head_VD, labels_N, teacher_signal, self.weights, scale=scale)
        ctc = torch.zeros_like(sums[0])
        if self.ctc is not None and self.training:
            ctc = self.ctc(encoder_BSD, torch.tensor(batch.seconds), batch.texts)
        hidden = torch.zeros_like(sums[0])
        if self.weights.hidden and teacher_BSD is not None:
            # A student with a shorter window has fewer states than its teacher; compare these.
            teacher_BSD = teacher_BSD[:, : encoder_BSD.shape[1]].to(encoder_BSD.dtype)
            hidden = mse_loss(encoder_BSD, teacher_BSD) * valid_BL.sum()
        total = sums[0] + self.weights.ctc * ctc + self.weights.hidden * hidden
        return torch.stack([total, sums[1], sums[2], ctc.detach(), hidden.detach()])

    @torch.no_grad()
    def teacher_states(self, batch: Batch, mel_BFT: Tensor | None, encoder_BSD: Tensor) -> Tensor | None:
        """Return the live teacher's encoder states [B, S, D], or None without a live teacher.

        These are the student's states `encoder_BSD` if both encoders are equal. Otherwise the teacher encodes the
        log-mel, computed again if the student's is shorter than the teacher's window.
        """
        if self.teacher is None or self.teacher.shares_encoder:
            return encoder_BSD if self.teacher is not None else None
        if mel_BFT is None or mel_BFT.shape[-1] < self.teacher.frames:
            mel_BFT = self.mel(batch, self.teacher.frames)
        states_BSD: Tensor = self.teacher.encode(mel_BFT)
        return states_BSD

    @torch.no_grad()
    def mel(self, batch: Batch, min_frames: int = 0) -> Tensor:
        """Return the log-mel [B, F, T] of a batch, zero-padded to at least `min_frames` frames.

        In training it is masked by SpecAugment if the objective has an augmentation.
        """
        samples_BN = batch.samples_BN
        mel_BFT: Tensor = self.log_mel(pad(samples_BN, (0, max(0, min_frames * HOP - samples_BN.shape[1]))))
        if self.augmentation is not None and self.training:
            draws = list(zip(batch.ids, batch.epochs, batch.seconds, strict=True))
            mel_BFT = self.augmentation.mask(mel_BFT, draws)
        return mel_BFT

    def encode(self, mel_BFT: Tensor) -> Tensor:
        """Return the student's encoder states [B, S, D], without gradient if the encoder is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            encoder = self.student.model.encoder
            if mel_BFT.shape[-1] < 2 * encoder.config.max_source_positions:
                return _encode_short(encoder, mel_BFT)
            states_BSD: Tensor = encoder(mel_BFT).last_hidden_state
            return states_BSD

    def decode(self, encoder_BSD: Tensor, inputs_BL: Tensor) -> Tensor:
        """Return the student decoder's last hidden states [B, L, D] at all input tokens, including the prompt."""
        decoded = self.student.model.decoder(input_ids=inputs_BL, encoder_hidden_states=encoder_BSD, use_cache=False)
        hidden_BLD: Tensor = decoded.last_hidden_state
        return hidden_BLD


def _encode_short(encoder: WhisperEncoder, mel_BFT: Tensor) -> Tensor:
    """Return the states [B, S, D] of a log-mel shorter than the window, which transformers' own forward rejects."""
    hidden_BDS = gelu(encoder.conv2(gelu(encoder.conv1(mel_BFT))))
    hidden_BSD = hidden_BDS.transpose(1, 2)
    hidden_BSD = hidden_BSD + encoder.embed_positions.weight[: hidden_BSD.shape[1]]
    for layer in encoder.layers:
        hidden_BSD = layer(hidden_BSD, None)
    states_BSD: Tensor = encoder.layer_norm(hidden_BSD)
    return states_BSD
