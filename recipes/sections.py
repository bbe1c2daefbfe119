"""The sections of a recipe, named after the stages: every field with its unit and default."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from recipes.sources import Section

Common = Literal["fp32", "fp16", "int8"]
Precision = Literal[Common, "w8a8", "w4a16"]
"""In bits of weights and activations the last two."""
Normalizer = Literal["basic", "english", "none"]


class Teacher(Section):
    """The Whisper-format model that labels the audio and guides the student."""

    model: str
    """Local folder or Hub id (`owner/name`) in Whisper format: config, safetensors, tokenizer."""
    language: str | None = "en"
    """Language code of the audio; null for English-only models."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """What the teacher does with the speech."""


class Labels(Section):
    """The teacher's transcripts of train and validation audio."""

    text: Literal["teacher", "reference", "normalized_reference"] = "teacher"
    """Who wrote them: the teacher, or the sources' own transcripts, as they stand or lower-case without punctuation."""
    source: str | None = None
    """Take a finished label set instead of running the teacher: a folder of label shards, or a Hub id."""
    batch_size: int | Literal["auto"] = 32
    """Clips a batch; `auto` finds it from free memory. A killed run loses at most the batch in flight."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """The teacher's arithmetic; `auto` is fp32 on a CPU, bf16 or fp16 on a GPU."""
    quantize: Literal[8, 4] | None = None
    """Load the teacher's linear layers in 8 or 4 bits through bitsandbytes."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention kernels of transformers; flash_attention_2 needs its own package and a GPU."""
    kv_cache: Literal["dynamic", "static"] = "dynamic"
    """`dynamic` grows and drops finished clips from the batch; `static` has fixed shapes, for compiled kernels."""
    language: Literal["teacher", "column", "detect"] = "teacher"
    """Language of the prompt: teacher.language, the utterance's own where there is one, or the teacher's guess."""
    timestamps: bool = False
    """Decode a second time with timestamps (one encoder pass serves both), so that training may draw either."""
    top_k: int = Field(default=0, ge=0)
    """Teacher logits kept at each label token; 0 keeps none, the vocabulary's size keeps the whole distribution."""
    temperature: float = Field(default=2.0, gt=0)
    """Softmax temperature at which the tail beyond top_k is summed; the temperature of training."""
    fallback: list[float] = [0.2, 0.4, 0.6, 0.8, 1.0]
    """Sampling temperatures tried in turn while a label is degenerate; the greedy one stays if none mends it."""
    fallback_compression_ratio: float = Field(default=2.4, gt=0)
    """A label that zlib shrinks more than this repeats itself (Whisper's own limit)."""
    fallback_logprob: float = -1.0
    """A label with a lower mean natural-log probability is a guess (Whisper's own limit)."""
    shard_rows: int = Field(default=4096, gt=0)
    """Rows of one finished Parquet shard."""


class Quality(Section):
    """Which labels training uses; null switches a test off. Runs in seconds on finished labels."""

    max_wer: float | None = Field(default=None, gt=0)
    """Largest WER(label, reference), a fraction; CER in languages written without spaces."""
    normalizer: Literal["auto", "basic", "english", "none"] = "auto"
    """Text normaliser of that comparison; `auto`: english for English if the teacher has its table, else basic."""
    min_logprob: float | None = None
    """Least mean natural-log probability of a label's tokens."""
    max_compression_ratio: float | None = Field(default=2.4, gt=0)
    """Largest zlib compression ratio of a label; above it the text repeats itself."""
    max_repeats: int | None = Field(default=4, gt=0)
    """Most times in a row that one group of one to four words may stand."""
    max_characters_per_second: float | None = Field(default=40.0, gt=0)
    """Most characters a second of audio."""
    max_no_speech: float | None = Field(default=0.6, gt=0, le=1)
    """Largest probability of no speech, where the label is a guess too (below labels.fallback_logprob)."""


class Student(Section):
    """What is cut from the teacher."""

    init: Literal["teacher", "scratch"] | str = "teacher"
    """What it is cut from: the teacher, or a finished student, a folder or Hub id of the teacher's family. `scratch`
    takes the teacher's shape and vocabulary alone, with random weights: how a teacher begins."""
    decoder_layers: int = Field(gt=0)
    """Decoder layers kept, maximally spaced, first and last among them."""
    encoder_layers: int | None = Field(default=None, gt=0)
    """Encoder layers kept in the same way; null copies it whole. A cut one wants train.freeze_encoder: false."""

    def source(self, teacher: str) -> tuple[str, str]:
        """Folder or Hub id of the model that is cut, and the recipe's key that names it."""
        return (teacher, "teacher.model") if self.init in ("teacher", "scratch") else (self.init, "student.init")


class Parity(Section):
    """How far an export may be from torch on real audio."""

    clips: int = Field(default=32, gt=0)
    """Validation clips compared."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Longest greedy text compared, in tokens; null for the model's own limit."""
    min_psnr_db: dict[Precision, float] = {"fp32": 80.0, "fp16": 50.0, "int8": 15.0, "w8a8": 15.0, "w4a16": 10.0}
    """Least peak signal-to-noise ratio of encoder states and logits, dB, by precision."""
    min_equal_text: dict[Precision, float] = {"fp32": 1.0, "fp16": 0.9, "int8": 0.6, "w8a8": 0.6, "w4a16": 0.4}
    """Least share of clips with the same greedy text, by precision."""
    max_wer_increase: dict[Precision, float] = {"fp32": 0.5, "fp16": 1.0, "int8": 3.0, "w8a8": 3.0, "w4a16": 5.0}
    """Most WER above torch's on those of the clips that have a transcript, percentage points, by precision."""

    @field_validator("min_psnr_db", "min_equal_text", "max_wer_increase", mode="before")
    @classmethod
    def _others_as_by_default(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        return {**cls.model_fields[info.field_name].default, **value} if isinstance(value, dict) else value


SMOOTH_QUANT: tuple[float | None, ...] = (None, 0.35, 0.5, 0.65, 0.8)


class Export(Section):
    """Files for devices."""

    onnx: list[Common] = ["fp32", "fp16", "int8"]
    """ONNX precisions to write; like all others, each is checked against torch."""
    openvino: list[Common] = []
    """OpenVINO precisions, with a stateful decoder; int8 is calibrated by NNCF on training audio."""
    smooth_quant: list[Annotated[float, Field(ge=0, le=1)] | None] = Field(default=[*SMOOTH_QUANT], min_length=1)
    """Shares of SmoothQuant that OpenVINO's int8 encoder chooses among; null leaves it out."""
    tflite: list[Common] = []
    """LiteRT (TFLite) precisions, with a static cache; needs `pip install 'sottovoce[tflite]'`."""
    mobile: list[Literal["fp32"]] = []
    """The same graphs split for mobile NPUs: one head at a time, 1x1 convolutions, in LiteRT and ONNX."""
    ctranslate2: list[Literal["fp32", "int8"]] = []
    """CTranslate2 precisions, for faster-whisper."""
    compressed_tensors: list[Literal["w8a8", "w4a16"]] = []
    """Checkpoints rounded by GPTQ on training audio, for vLLM; needs `pip install 'sottovoce[int4]'`."""
    alignment_clips: int = Field(default=0, ge=0)
    """Strings of joined training utterances on which heads for word times are chosen, such as 64; 0 chooses none."""
    parity: Parity = Parity()
    """Tolerances; beyond them the stage fails."""

    @property
    def artefacts(self) -> list[tuple[str, str, Precision]]:
        """Name, runtime and precision of everything to write."""
        runtimes = ("onnx", "openvino", "tflite", "mobile", "ctranslate2", "compressed_tensors")
        return [
            (f"{runtime}-{precision}", runtime, precision)
            for runtime in runtimes
            for precision in getattr(self, runtime)
        ]


class Noise(Section):
    """The test set under noise, and noise without speech."""

    folder: Path | None = None
    """Folder of noise recordings; null makes white and pink noise."""
    files: list[str] = Field(default=["*"], min_length=1)
    """Which of its files, such as [`*noise*`] where room impulses lie beside them."""
    snr_db: list[float] = Field(default=[20.0, 10.0, 5.0, 0.0], min_length=1)
    """Signal-to-noise ratios, dB, of noise to the whole clip's power; at each the same noise under the same clip."""
    utterances: int = Field(default=100, gt=0)
    """Utterances of each test set, evenly spaced."""
    alone: int = Field(default=10, ge=0)
    """Windows of noise alone, beside one of digital silence: every word there is invented."""


class LongForm(Section):
    """Recordings longer than the model's window."""

    folder: Path | None = None
    """Audio folder (metadata.jsonl or .csv with `file_name`, `text`); null joins utterances of each test set."""
    modes: list[Literal["sequential", "chunked"]] = Field(default=["sequential", "chunked"], min_length=1)
    """`sequential` follows the model's timestamps, `chunked` joins overlapping windows."""
    joined_seconds: float = Field(default=60.0, gt=0)
    """Least length of a joined recording, s; utterances follow each other speaker by speaker."""
    pause_seconds: float = Field(default=0.5, ge=0)
    """Silence after each joined utterance, s."""
    recordings: int = Field(default=10, gt=0)
    """At most so many from the folder or each test set."""


class Eval(Section):
    """Accuracy of teacher, student and every export on the test split."""

    normalizer: Normalizer = "english"
    """`english` and `basic` are Whisper's own; `basic` leaves number words apart."""
    bootstrap: int = Field(default=1000, ge=100)
    """Resamples behind the 95 % intervals."""
    batch_size: int = Field(default=16, gt=0)
    """Clips a batch."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Longest text of a clip, in tokens; null for the model's own limit."""
    samples: int = Field(default=12, ge=0)
    """Transcripts of each test set shown in the report."""
    noise: Noise | None = None
    """Accuracy under noise and words on no speech; null leaves both out."""
    long_form: LongForm | None = None
    """Accuracy on recordings longer than the window; null leaves it out."""
    draft: int = Field(default=0, ge=0)
    """Test clips, evenly spaced, on which the student drafts for its teacher and acceptance is counted; 0 for none."""


class Benchmark(Section):
    """Latency and memory, one fresh process a variant."""

    threads: int = Field(default=2, gt=0)
    """Cores a process is pinned to, and threads it uses."""
    clips: int = Field(default=25, gt=0)
    """Test clips transcribed one by one."""
    runs: int = Field(default=100, gt=0)
    """Timed transcriptions at least; the clips are repeated as needed."""
    warmup: int = Field(default=20, ge=0)
    """Untimed transcriptions first."""
    turns: int = Field(default=50, gt=0)
    """Clips that a variant and the baseline transcribe in turn, for how many times faster it is."""
    tokens: int | None = Field(default=None, gt=0)
    """Decode exactly this many tokens a clip, for random weights; null stops at the end of text."""
    repeats: int = Field(default=2, ge=0)
    """More measurements of a variant that is too near a limit of its budget for this machine's noise."""
    clients: list[Annotated[int, Field(gt=0)]] = []
    """Numbers of clients that ask one process at the same time, such as [1, 2, 4, 8]; empty leaves this out."""


class Budget(Section):
    """The devices the student must fit."""

    device: Path
    """Budget file, such as recipes/budgets/laptop.yaml."""
    required: bool = True
    """End with exit status 3 when no artefact keeps this device's budget."""
    also: list[Path] = []
    """Budget files of more devices: judged and reported, never required."""

    @property
    def devices(self) -> list[Path]:
        """All budget files, `device` first."""
        return [self.device, *self.also]
