"""The `train` and `heal` sections: what the student learns from, and how it is optimized."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from recipes.schema.section import Section


class LoraOptions(Section):
    """Train low-rank adapters (LoRA, with peft) instead of all weights. They are merged into the saved student."""

    rank: int = Field(default=16, gt=0)
    """Rank of each adapter."""
    alpha: int = Field(default=32, gt=0)
    """Scale of the adapters: the output of an adapter is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability at the input of the adapters."""
    targets: list[str] = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    """Suffixes of the names of the linear layers that get an adapter. Layers of a frozen encoder never get one."""


class AugmentOptions(Section):
    """Data augmentation, drawn anew in each epoch. The labels are those of the clean audio."""

    speed: list[float] = []
    """Speed factors, of which one is drawn for each utterance, such as [0.9, 1.0, 1.1]. The pitch changes with the
    speed."""
    noise: Path | None = None
    """Folder of noise recordings to add. Null adds none."""
    noise_share: float = Field(default=0.5, ge=0, le=1)
    """Fraction of utterances with added noise."""
    snr_db: tuple[float, float] = (5.0, 30.0)
    """Minimum and maximum signal-to-noise ratio in dB, drawn uniformly."""
    rooms: Path | None = None
    """Folder of room impulse responses to convolve with. Null adds no reverberation."""
    room_share: float = Field(default=0.3, ge=0, le=1)
    """Fraction of utterances with reverberation."""
    time_masks: int = Field(default=0, ge=0)
    """Number of SpecAugment time masks in each clip."""
    time_mask_seconds: float = Field(default=0.4, gt=0)
    """Maximum length of a time mask, in seconds."""
    mel_masks: int = Field(default=0, ge=0)
    """Number of SpecAugment masks over mel bins in each clip."""
    mel_mask_bins: int = Field(default=27, gt=0)
    """Maximum width of a mel mask, in bins."""


class TrainSection(Section):
    """Knowledge distillation. The loss is ce_weight * CE(labels) + kl_weight * T^2 * KL(teacher || student)."""

    name: ClassVar[str] = "train"
    """Name of the section and of its stage."""
    steps: int = Field(default=2000, ge=0)
    """Number of optimizer steps. 0 passes the untrained student on."""
    batch_size: int = Field(default=32, gt=0)
    """Utterances per optimizer step, over all processes."""
    micro_batch_size: int | Literal["auto"] | None = None
    """Utterances per forward pass of a process; gradients are accumulated. `auto` halves the number until it fits into
    memory. Null takes all utterances of the step at once."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate, reached after a linear warm-up. The default was measured at width 192 (recipes/NOTES.md);
    wider students need a lower one."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning-rate schedule after the warm-up. `linear` and `cosine` decay to zero at the last step."""
    warmup_steps: int = Field(default=50, ge=0)
    """Number of warm-up steps."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """Optimizer. `adamw_8bit` stores the moments of AdamW in 8 bits with bitsandbytes."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Maximum gradient norm. Larger gradients are scaled down to it."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, such as 0.999, which is then validated and saved. Null
    uses the weights themselves."""
    lora: LoraOptions | None = None
    """Train only low-rank adapters. Null trains all weights."""
    ce_weight: float = Field(default=0.8, ge=0)
    """Weight of the cross-entropy on the pseudo-labels."""
    kl_weight: float = Field(default=1.0, ge=0)
    """Weight of the KL divergence from the teacher. With 0, training needs no teacher."""
    temperature: float = Field(default=2.0, gt=0)
    """Softmax temperature T of the KL divergence."""
    ctc_weight: float = Field(default=0.0, ge=0)
    """Weight of an auxiliary CTC loss on the encoder, which helps a model that is trained from scratch to align early.
    Its output layer is not saved."""
    hidden_weight: float = Field(default=0.0, ge=0)
    """Weight of the mean squared error between the encoder states of student and live teacher. It repairs a compressed
    encoder."""
    teacher: Literal["live", "stored"] = "live"
    """`live` runs the teacher in each step. `stored` reads its logits from the labels, which need `labels.top_k`."""
    quantize_teacher: Literal[8, 4] | None = None
    """Load the linear layers of the live teacher in 8 or 4 bits with bitsandbytes. Null keeps their precision."""
    freeze_encoder: bool = True
    """Do not train the encoder. If it equals the teacher's, both decoders share one encoder pass."""
    cache_encoder: bool = False
    """Compute the states of the frozen encoder once and keep them on disk in fp16 during training."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of accelerate. `no` trains in fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass. This saves memory and takes about a third more time."""
    compile: bool = False
    """Compile the encoder and the decoder with torch.compile."""
    eval_steps: int = Field(default=100, gt=0)
    """Number of steps between validations. The student with the best result is kept."""
    select: Literal["wer", "loss"] = "wer"
    """Validation metric that selects the best student. Use `loss` if WER is mostly noise, as on labels that the student
    cannot reproduce."""
    save_steps: int = Field(default=100, gt=0)
    """Number of steps between checkpoints. A run that is killed continues from the last one."""
    validation_utterances: int = Field(default=128, gt=0)
    """Maximum number of validation utterances to score."""
    max_skipped: int = Field(default=10, ge=0)
    """Maximum number of steps that may be skipped because their loss is not a number. Beyond it the run fails and names
    the utterances."""
    workers: int = Field(default=1, ge=0)
    """Number of processes that decode audio ahead of training. 0 decodes in the training process."""
    bucket_batches: int = Field(default=16, gt=0)
    """Number of batches whose utterances are sorted together by label length, which reduces padding. 1 turns sorting
    off."""
    curriculum_steps: int = Field(default=0, ge=0)
    """Number of steps over which the maximum length of the utterances grows from the shortest to the longest. 0 uses
    all lengths from the start."""
    full_window: float = Field(default=1.0, ge=0, le=1)
    """Fraction of batches that are padded to the whole window of the model. The others are padded to their longest
    clip, which is faster."""
    timestamps: float = Field(default=0.0, ge=0, le=1)
    """Fraction of examples that are trained with timestamps, drawn anew in each epoch. Needs `labels.timestamps`."""
    previous_text: float = Field(default=0.0, ge=0, le=1)
    """Fraction of examples whose prompt contains the previous utterance of the same speaker, drawn anew in each
    epoch."""
    source_weights: dict[str, float] = {}
    """How often the utterances of a source are used per epoch, by source name: 2 is twice, 0.5 is in every other epoch.
    Sources that are not listed have weight 1."""
    augment: AugmentOptions | None = None
    """Augmentation with noise, room impulse responses, speed changes and SpecAugment. Null trains on clean audio."""
    trackers: list[str] = ["tensorboard"]
    """Trackers of accelerate in addition to metrics.jsonl: `tensorboard`, `wandb`, ..."""

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.cache_encoder and not self.freeze_encoder:
            raise ValueError(
                "cache_encoder: true needs freeze_encoder: true, because training the encoder changes its states"
            )
        if self.cache_encoder and self.augment is not None:
            raise ValueError("cache_encoder: true needs augment: null, because augmented audio differs in each epoch")
        if self.full_window < 1 and (self.freeze_encoder or self.kl_weight):
            raise ValueError(
                "full_window: below 1 needs training without a teacher; set kl_weight: 0 and freeze_encoder: false"
            )
        if self.ctc_weight and self.freeze_encoder:
            raise ValueError("ctc_weight: needs freeze_encoder: false, because CTC is a loss on the encoder")
        if self.hidden_weight and (self.freeze_encoder or self.teacher != "live" or not self.kl_weight):
            raise ValueError("hidden_weight: needs freeze_encoder: false, teacher: live and a kl_weight above 0")
        if self.quantize_teacher is not None and self.teacher != "live":
            raise ValueError("quantize_teacher: needs teacher: live; training on stored logits loads no teacher")
        return self


class HealSection(TrainSection):
    """Train the compressed student, with the same options as in `train`. The encoder is trained too by default,
    because after compression it differs from the teacher's."""

    name: ClassVar[str] = "heal"
    freeze_encoder: bool = False
    """Do not train the compressed encoder."""
