"""The recipe: one YAML for one student, its sections named after the stages.

Values come from, in rising order, the defaults below, the YAML file and `section.key=value` overrides.
Paths are relative to the working directory. `${oc.env:NAME,default}` reads an environment variable.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recipes.errors import UserError

Precision = Literal["fp32", "fp16", "int8"]
Normalizer = Literal["basic", "english", "none"]


class Section(BaseModel):
    """Frozen; unknown keys are refused; a field's docstring is its description in the JSON schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Teacher(Section):
    """The Whisper-format model that labels the audio and guides the student."""

    model: str
    """Local folder or Hub id (`owner/name`) in Whisper format: config, safetensors, tokenizer."""
    language: str | None = "en"
    """Language code of the audio; null for English-only models."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """What the teacher does with the speech."""


class Synthesis(Section):
    """Speech made from sentences with espeak-ng."""

    sentences: Path
    """Text file, one sentence a line."""
    voices: list[str] | None = None
    """espeak-ng voices such as `en-us+f3`; null for the default set."""
    limit: int | None = Field(default=None, gt=0)
    """Use only the first N sentences."""


class Source(Section):
    """Where audio comes from: exactly one of `audiofolder`, `audio`, `synthesis`."""

    audiofolder: Path | None = None
    """Folder with metadata.jsonl or .csv (`file_name`, `text`), or train / validation / test folders of these."""
    audio: Path | None = None
    """Bare folder of audio without transcripts; train / validation / test sub-folders give the split, else train."""
    synthesis: Synthesis | None = None
    """Sentences to speak; cut into train / validation / test by `synthesis_test_fraction`."""
    name: str | None = None
    """Name of the test set in tables; default: the folder's or file's name."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(kind is not None for kind in (self.audiofolder, self.audio, self.synthesis)) != 1:
            raise ValueError("a source is exactly one of audiofolder, audio, synthesis")
        return self

    @property
    def label(self) -> str:
        """The source's name in tables and utterance ids."""
        place = self.audiofolder or self.audio or (self.synthesis.sentences if self.synthesis else Path("audio"))
        return self.name or place.stem


class Corpus(Section):
    """Audio to utterances."""

    sources: list[Source] = Field(min_length=1)
    """One or more sources; each keeps its own test set."""
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of train utterances held out where a source has no validation split; chosen by a hash of the id."""
    synthesis_test_fraction: float = Field(default=0.15, ge=0, lt=1)
    """Share of synthetic sentences kept for the test split."""
    max_error_rate: float = Field(default=0.1, ge=0, le=1)
    """Share of unreadable files above which the stage fails (exit 1)."""
    limit: int | None = Field(default=None, gt=0)
    """Keep at most N utterances of each source and split; for trials."""


class Labels(Section):
    """The teacher's transcripts of train and validation audio."""

    batch_size: int = Field(default=32, gt=0)
    """Clips a batch; a killed run loses at most the batch in flight."""
    shard_rows: int = Field(default=4096, gt=0)
    """Rows of one finished Parquet shard."""
    max_wer: float | None = Field(default=None, gt=0)
    """Leave an utterance out of training when WER(label, reference), a fraction, is above this; null keeps all."""
    normalizer: Normalizer = "basic"
    """Text normaliser of that comparison."""


class Student(Section):
    """What is cut from the teacher."""

    decoder_layers: int = Field(gt=0)
    """Decoder layers kept, maximally spaced, first and last among them; the encoder is copied whole."""


class Train(Section):
    """Knowledge distillation: ce_weight * CE(labels) + kl_weight * T^2 * KL(teacher || student)."""

    steps: int = Field(default=2000, ge=0)
    """Optimiser steps; 0 passes the untrained student on."""
    batch_size: int = Field(default=32, gt=0)
    """Utterances an optimiser step over all processes."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate of AdamW; linear warm-up, then linear decay to zero."""
    warmup_steps: int = Field(default=50, ge=0)
    """Steps of warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    ce_weight: float = Field(default=0.8, ge=0)
    """Weight of the cross-entropy on pseudo-labels."""
    kl_weight: float = Field(default=1.0, ge=0)
    """Weight of the KL term; 0 needs no teacher in memory."""
    temperature: float = Field(default=2.0, gt=0)
    """Softmax temperature T of the KL term."""
    freeze_encoder: bool = True
    """Keep the encoder as the teacher's; one encoder pass then serves both decoders."""
    cache_encoder: bool = False
    """Compute the frozen encoder's states once and keep them on disk in fp16 while training."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of accelerate; `no` is fp32."""
    eval_steps: int = Field(default=100, gt=0)
    """Steps between validations; the best validation WER (then loss) is kept."""
    save_steps: int = Field(default=100, gt=0)
    """Steps between checkpoints, from which a killed run goes on."""
    validation_utterances: int = Field(default=128, gt=0)
    """Validation utterances scored at most."""
    workers: int = Field(default=1, ge=0)
    """Processes that decode audio ahead of the training step; 0 decodes in the training process."""

    @model_validator(mode="after")
    def _cache_needs_a_frozen_encoder(self) -> Self:
        if self.cache_encoder and not self.freeze_encoder:
            raise ValueError(
                "cache_encoder: true needs freeze_encoder: true, since a trained encoder changes its states"
            )
        return self


class Parity(Section):
    """How far an export may be from torch on real audio."""

    clips: int = Field(default=32, gt=0)
    """Validation clips compared."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Longest greedy text compared, in tokens; null for the model's own limit."""
    min_psnr_db: dict[Precision, float] = {"fp32": 80.0, "fp16": 50.0, "int8": 15.0}
    """Least peak signal-to-noise ratio of encoder states and logits, dB, by precision."""
    min_equal_text: dict[Precision, float] = {"fp32": 1.0, "fp16": 0.9, "int8": 0.6}
    """Least share of clips with the same greedy text, by precision."""


class Export(Section):
    """Files for devices."""

    onnx: list[Precision] = ["fp32", "fp16", "int8"]
    """ONNX precisions to write; each is checked against torch."""
    parity: Parity = Parity()
    """Tolerances; beyond them the stage fails."""


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
    tokens: int | None = Field(default=None, gt=0)
    """Decode exactly this many tokens a clip, for random weights; null stops at the end of text."""


class Budget(Section):
    """The device the student must fit."""

    device: Path
    """Budget file, such as recipes/budgets/laptop.yaml."""
    required: bool = True
    """End with exit status 3 when no artefact keeps the budget."""


class Recipe(Section):
    """A whole recipe. A stage whose section is null is left out of the flow."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its stage folders are `runs/NAME/STAGE`."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    seed: int = 0
    """Seed of every draw."""
    launch: Path | None = None
    """accelerate configuration used by `sottovoce run` for labels and train; null takes accelerate's default."""
    teacher: Teacher
    """The model to learn from."""
    corpus: Corpus
    """Audio in."""
    labels: Labels | None = None
    """Pseudo-labels."""
    student: Student
    """The cut."""
    train: Train | None = None
    """Distillation; needs labels. Without it the untrained student is exported."""
    export: Export = Export()
    """Device files."""
    eval: Eval | None = Eval()
    """Accuracy."""
    benchmark: Benchmark | None = Benchmark()
    """Latency and memory."""
    budget: Budget | None = None
    """Verdict; needs benchmark."""

    @model_validator(mode="after")
    def _flow_is_whole(self) -> Self:
        if self.train is not None and self.labels is None:
            raise ValueError("train: needs a labels section; write `labels: {}` for its defaults")
        if self.budget is not None and self.benchmark is None:
            raise ValueError("budget: needs a benchmark section; write `benchmark: {}` for its defaults")
        return self

    @property
    def root(self) -> Path:
        """Folder of this run: `runs/NAME`."""
        return self.runs / self.name


def load(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file with dotted overrides.

    Raises UserError, in one line with the file and the dotted key, for a missing or unparsable file, an
    override that is not `section.key=value`, an unknown key, a wrong type or a value out of range.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "recipe.yaml"
    if not path.is_file():
        raise UserError(f"recipe {path}: expected a YAML file, found none; see recipes/ for examples")
    try:
        config = OmegaConf.load(path)
        if not isinstance(config, DictConfig):
            raise UserError(f"recipe {path}: expected sections at the top level, found a list")
        for override in overrides:
            key, equals, _ = override.partition("=")
            if not equals or not key or key.startswith("-"):
                raise UserError(
                    f"override {override!r}: expected section.key=value, such as train.steps=500; found no usable key"
                )
            config = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
        values = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"recipe {path}: does not parse: {error}") from error
    return validate(values, str(path))


def validate(values: Any, where: str) -> Recipe:
    """Values to a Recipe; UserError lists every wrong key with what was expected and found."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(f"recipe {where}: {'; '.join(_explain(problem) for problem in error.errors())}") from error


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "recipe"
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; remove it or correct its spelling ({_siblings(problem['loc'][:-1])})"
    if problem["type"] == "missing":
        return f"{key}: expected a value, found none; add it"
    message = problem["msg"].removeprefix("Value error, ")
    found = problem["input"]
    shown = "" if isinstance(found, dict | BaseModel) else f", found {found!r}"
    return f"{key}: {message}{shown}"


def _siblings(location: Sequence[Any]) -> str:
    """The keys that may stand at a location: `known: a, b`."""
    node: Any = Recipe.model_json_schema()
    definitions = node["$defs"]
    for part in location:
        node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
        choices = [node, *node.get("anyOf", []), *node.get("allOf", [])]
        reference = next((choice["$ref"] for choice in choices if "$ref" in choice), None)
        node = definitions[reference.rsplit("/", 1)[-1]] if reference else node
    return "known: " + ", ".join(node.get("properties", {}))


def json_schema() -> str:
    """The recipe's JSON schema, for editors: `sottovoce schema > recipe.schema.json`."""
    return json.dumps(Recipe.model_json_schema(), indent=2)
