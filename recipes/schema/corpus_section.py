"""The recipe's corpus section: where audio comes from and how it is cut into utterances."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from recipes.schema.section import Section

Split = Literal["train", "validation", "test"]


class SynthesisOptions(Section):
    """Speech made from sentences with espeak-ng."""

    sentences: Path
    """Text file, one sentence a line."""
    voices: list[str] | None = None
    """espeak-ng voices such as `en-us+f3`; null for the default set."""
    limit: int | None = Field(default=None, gt=0)
    """Use only the first N sentences."""


class HubDataset(Section):
    """A Hub data set, or a local folder that `datasets.load_dataset` reads."""

    dataset: str
    """Hub id (`owner/name`) or folder."""
    config: str | None = None
    """Configuration of the data set, such as `clean` or a language."""
    split: str = "train"
    """Split to read, in the words of `datasets`: `train`, `validation.clean`, `train[:1%]`."""
    revision: str | None = None
    """Branch, tag or commit; null for the newest."""
    streaming: bool = True
    """Read row by row; false downloads the whole split into the Hub's cache first."""


class ColumnNames(Section):
    """Where a source keeps what; null takes the default name where there is such a column."""

    audio: str = "audio"
    """Audio of a Hub data set or of Parquet: embedded bytes, or a path."""
    text: str | None = None
    """Reference transcript; default `text`."""
    speaker: str | None = None
    """Speaker, for packing; default `speaker`."""
    language: str | None = None
    """Language code of the utterance; default `language`."""


class AudioSource(Section):
    """Where audio comes from: exactly one of `audiofolder`, `audio`, `parquet`, `hub`, `synthesis`."""

    audiofolder: Path | None = None
    """Folder with metadata.jsonl or .csv (`file_name`, `text`), or train / validation / test folders of these."""
    audio: Path | None = None
    """Bare folder of audio without transcripts; train / validation / test sub-folders give the split, else train."""
    parquet: Path | None = None
    """Parquet file or folder of them with embedded audio, `{bytes, path}`, as `datasets` writes it."""
    hub: HubDataset | None = None
    """Hub data set."""
    synthesis: SynthesisOptions | None = None
    """Sentences to speak; cut into train / validation / test by `synthesis_test_fraction`."""
    name: str | None = None
    """Name of the test set in tables; default: the folder's or file's name."""
    split: Split | None = None
    """What its utterances are for, where the source does not say by its folders or its own split."""
    columns: ColumnNames = ColumnNames()
    """Names of its columns."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = (self.audiofolder, self.audio, self.parquet, self.hub, self.synthesis)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("a source is exactly one of audiofolder, audio, parquet, hub, synthesis")
        return self

    @property
    def place(self) -> Path | None:
        """The local file or folder it reads; None for a Hub id."""
        hub = Path(self.hub.dataset) if self.hub and Path(self.hub.dataset).is_dir() else None
        spoken = self.synthesis.sentences if self.synthesis else None
        return self.audiofolder or self.audio or self.parquet or hub or spoken

    @property
    def label(self) -> str:
        """The source's name in tables and utterance ids."""
        return self.name or Path(self.hub.dataset if self.hub else self.place or "audio").stem


class CorpusSection(Section):
    """Audio to utterances."""

    sources: list[AudioSource] = Field(min_length=1)
    """One or more sources; each keeps its own test set."""
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of train utterances held out where a source has no validation split; chosen by a hash of the id."""
    synthesis_test_fraction: float = Field(default=0.15, ge=0, lt=1)
    """Share of synthetic sentences kept for the test split."""
    max_error_rate: float = Field(default=0.1, ge=0, le=1)
    """Share of unusable files above which the stage fails (exit 1)."""
    limit: int | None = Field(default=None, gt=0)
    """Keep at most N utterances of each source and split; for trials."""
    min_seconds: float = Field(default=0.1, ge=0)
    """Shorter recordings are refused, by name."""
    max_seconds: float = Field(default=30.0, gt=1)
    """Longer recordings are split at silences; at most the teacher's window."""
    pack: bool = False
    """Join train and validation neighbours of one source, speaker and language up to max_seconds."""
