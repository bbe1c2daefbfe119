"""The recipe's train section: what is learnt, from whom, and how."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from recipes.schema.section import Section


class LoraOptions(Section):
    """Low-rank adapters (peft) in place of full training; merged into the student that is kept."""

    rank: int = Field(default=16, gt=0)
    """Width of each adapter."""
    alpha: int = Field(default=32, gt=0)
    """Scale: an adapter's output is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapters."""
    targets: list[str] = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    """Linear layers that get one, by the end of their name; those of a frozen encoder never do."""


class AugmentOptions(Section):
    """Changes to the audio, drawn anew in each epoch. The labels stay those of the clean audio."""

    speed: list[float] = []
    """Factors on the speed, one drawn for each utterance, such as [0.9, 1.0, 1.1]; pitch moves with it."""
    noise: Path | None = None
    """Folder of noise recordings."""
    noise_share: float = Field(default=0.5, ge=0, le=1)
    """Share of utterances with noise."""
    snr_db: tuple[float, float] = (5.0, 30.0)
    """Least and largest signal-to-noise ratio, dB, drawn evenly."""
    rooms: Path | None = None
    """Folder of room impulse responses."""
    room_share: float = Field(default=0.3, ge=0, le=1)
    """Share of utterances in a room."""
    time_masks: int = Field(default=0, ge=0)
    """SpecAugment: masks over time in each clip, each up to time_mask_seconds."""
    time_mask_seconds: float = Field(default=0.4, gt=0)
    """Longest time mask, s."""
    mel_masks: int = Field(default=0, ge=0)
    """SpecAugment: masks over mel bins, each up to mel_mask_bins."""
    mel_mask_bins: int = Field(default=27, gt=0)
    """Widest mel mask, bins."""


class TrainSection(Section):
    """Knowledge distillation: ce_weight * CE(labels) + kl_weight * T^2 * KL(teacher || student)."""

    name: ClassVar[str] = "train"
    """Of the section and its stage."""
    steps: int = Field(default=2000, ge=0)
    """Optimiser steps; 0 passes the untrained student on."""
    batch_size: int = Field(default=32, gt=0)
    """Utterances an optimiser step over all processes."""
    micro_batch_size: int | Literal["auto"] | None = None
    """Utterances a process takes at a time, gradients accumulated; `auto` halves until they fit; null takes all."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate, after a linear warm-up; measured at width 192 (NOTES.md), wider students want less."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What follows the warm-up; `linear` and `cosine` fall to zero after the last step."""
    warmup_steps: int = Field(default=50, ge=0)
    """Steps of warm-up."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW; `adamw_8bit` holds its moments in 8 bits through bitsandbytes."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Validate and keep an exponential moving average of the weights, such as 0.999."""
    lora: LoraOptions | None = None
    """Train adapters alone."""
    ce_weight: float = Field(default=0.8, ge=0)
    """Weight of the cross-entropy on pseudo-labels."""
    kl_weight: float = Field(default=1.0, ge=0)
    """Weight of the KL term; 0 needs no teacher."""
    temperature: float = Field(default=2.0, gt=0)
    """Softmax temperature T of the KL term."""
    ctc_weight: float = Field(default=0.0, ge=0)
    """Weight of an auxiliary CTC loss on the encoder, which aligns a model from scratch early; its head is dropped."""
    hidden_weight: float = Field(default=0.0, ge=0)
    """Weight of the mean squared error of the encoder's states against the live teacher's; mends a changed encoder."""
    teacher: Literal["live", "stored"] = "live"
    """`live` runs the teacher in each step; `stored` reads its logits from the labels (labels.top_k)."""
    quantize_teacher: Literal[8, 4] | None = None
    """Hold the live teacher's linear layers in 8 or 4 bits through bitsandbytes."""
    freeze_encoder: bool = True
    """Keep the encoder as it was cut; where it equals the teacher's, one pass serves both decoders."""
    cache_encoder: bool = False
    """Compute the frozen encoder's states once and keep them on disk in fp16 while training."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of accelerate; `no` is fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile encoder and decoder with torch.compile."""
    eval_steps: int = Field(default=100, gt=0)
    """Steps between validations; the best student is kept."""
    select: Literal["wer", "loss"] = "wer"
    """Validation figure by which it is the best; `loss` where WER is noise, as on labels the student cannot follow."""
    save_steps: int = Field(default=100, gt=0)
    """Steps between checkpoints, from which a killed run goes on."""
    validation_utterances: int = Field(default=128, gt=0)
    """Validation utterances scored at most."""
    max_skipped: int = Field(default=10, ge=0)
    """Steps with a loss that is not a number that are skipped before the run ends, naming the utterances."""
    workers: int = Field(default=1, ge=0)
    """Processes that decode audio ahead of the training step; 0 decodes in the training process."""
    bucket_batches: int = Field(default=16, gt=0)
    """Batches whose utterances are sorted by the length of their label before they are cut; 1 sorts nothing."""
    curriculum_steps: int = Field(default=0, ge=0)
    """Steps over which the longest utterance drawn grows from the shortest ones to all; 0 draws from all at once."""
    full_window: float = Field(default=1.0, ge=0, le=1)
    """Share of batches whose audio is padded to the model's window; the others, cheaper, to their longest clip."""
    timestamps: float = Field(default=0.0, ge=0, le=1)
    """Share of examples learnt with timestamps, drawn anew each epoch; needs labels.timestamps."""
    previous_text: float = Field(default=0.0, ge=0, le=1)
    """Share of examples given what the same speaker said just before as a prompt, drawn anew each epoch."""
    source_weights: dict[str, float] = {}
    """How often an utterance is drawn in an epoch, by source name: 2 is twice, 0.5 every other epoch; else 1."""
    augment: AugmentOptions | None = None
    """Noise, rooms, speed and SpecAugment."""
    trackers: list[str] = ["tensorboard"]
    """Trackers of accelerate beside metrics.jsonl: `tensorboard`, `wandb`, ..."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.cache_encoder and not self.freeze_encoder:
            raise ValueError(
                "cache_encoder: true needs freeze_encoder: true, since a trained encoder changes its states"
            )
        if self.cache_encoder and self.augment is not None:
            raise ValueError("cache_encoder: true needs augment: null, since augmented audio is new in each epoch")
        if self.full_window < 1 and (self.freeze_encoder or self.kl_weight):
            raise ValueError("full_window: below 1 is for training without a teacher; set kl_weight and freeze_encoder")
        if self.ctc_weight and self.freeze_encoder:
            raise ValueError("ctc_weight: is a loss on the encoder and needs freeze_encoder: false")
        if self.hidden_weight and (self.freeze_encoder or self.teacher != "live" or not self.kl_weight):
            raise ValueError("hidden_weight: needs freeze_encoder: false, teacher: live and a kl_weight")
        if self.quantize_teacher is not None and self.teacher != "live":
            raise ValueError("quantize_teacher: needs teacher: live; stored labels hold no model")
        return self


class HealSection(TrainSection):
    """Training of the compressed student, as in `train`; its encoder is not the teacher's any more and learns too."""

    name: ClassVar[str] = "heal"
    freeze_encoder: bool = False
    """Keep the encoder as it was compressed."""
