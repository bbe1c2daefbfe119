"""The `corpus` section: the sources of audio and how recordings become utterances."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from recipes.schema.section import Section

Split = Literal["train", "validation", "test"]


class SynthesisOptions(Section):
    """Synthetic speech: espeak-ng speaks the sentences of a text file."""

    sentences: Path
    """Text file with one sentence per line."""
    voices: list[str] | None = None
    """Voices of espeak-ng, such as `en-us+f3`. Null uses the default set."""
    limit: int | None = Field(default=None, gt=0)
    """Number of sentences to use, from the start of the file. Null uses all."""


class HubDataset(Section):
    """A data set on the Hub, or a local folder that `datasets.load_dataset` can read."""

    dataset: str
    """Hub id (`owner/name`) or local folder."""
    config: str | None = None
    """Configuration of the data set, such as `clean` or a language code. Null uses the default one."""
    split: str = "train"
    """Split to read, in the syntax of `datasets`: `train`, `validation.clean`, `train[:1%]`."""
    revision: str | None = None
    """Branch, tag or commit. Null uses the latest commit."""
    streaming: bool = True
    """Download and read the rows one by one. False downloads the whole split into the Hub cache first."""


class ColumnNames(Section):
    """Names of the columns of a source. Null uses the default name if the source has such a column."""

    audio: str = "audio"
    """Column with the audio of a Hub data set or of Parquet files: embedded bytes or a path."""
    text: str | None = None
    """Column with the reference transcript. The default name is `text`."""
    speaker: str | None = None
    """Column with the speaker, for packing. The default name is `speaker`."""
    language: str | None = None
    """Column with the language code of the utterance. The default name is `language`."""


class AudioSource(Section):
    """A source of audio. Set exactly one of `audiofolder`, `audio`, `parquet`, `hub` and `synthesis`."""

    audiofolder: Path | None = None
    """Folder with metadata.jsonl or metadata.csv (`file_name`, `text`), or with subfolders train, validation (or valid,
    dev) and test that have one each."""
    audio: Path | None = None
    """Folder of audio files without transcripts. If it has subfolders train, validation (or valid, dev) and test, these
    set the split and nothing else is read; otherwise all files are training audio."""
    parquet: Path | None = None
    """Parquet file, or folder of Parquet files, with embedded audio (`{bytes, path}`) as `datasets` writes it."""
    hub: HubDataset | None = None
    """Data set on the Hub."""
    synthesis: SynthesisOptions | None = None
    """Sentences to synthesize. `validation_fraction` and `synthesis_test_fraction` divide them into splits."""
    name: str | None = None
    """Name of the source in tables and utterance ids. Null uses the name of the folder, the file or the data set."""
    split: Split | None = None
    """Split of all its utterances, if neither the folders of the source nor its own split determine it."""
    columns: ColumnNames = ColumnNames()
    """Names of the columns."""

    @model_validator(mode="after")
    def _require_one_kind(self) -> Self:
        kinds = (self.audiofolder, self.audio, self.parquet, self.hub, self.synthesis)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("expected exactly one of audiofolder, audio, parquet, hub, synthesis")
        return self

    @property
    def place(self) -> Path | None:
        """Local file or folder that the source is read from; None for a data set on the Hub."""
        dataset = Path(self.hub.dataset) if self.hub and Path(self.hub.dataset).is_dir() else None
        sentences = self.synthesis.sentences if self.synthesis else None
        return self.audiofolder or self.audio or self.parquet or dataset or sentences

    @property
    def label(self) -> str:
        """Name of the source in tables and utterance ids."""
        return self.name or Path(self.hub.dataset if self.hub else self.place or "audio").stem


class CorpusSection(Section):
    """Sources of audio, and how their recordings are split, filtered and cut into utterances."""

    sources: list[AudioSource] = Field(min_length=1)
    """One or more sources of audio. Each source with test utterances is a test set of its own."""
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Fraction of the train recordings to hold out for validation if a source has no validation split. A hash of the
    recording id selects them, so the choice is stable; at least one recording of the corpus is held out."""
    test_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the train recordings to hold out for testing if a source has no test split. At 0, such a source has
    no test set. A hash of the recording id selects them, so the choice is stable; at least one is held out."""
    synthesis_test_fraction: float = Field(default=0.15, ge=0, lt=1)
    """Fraction of the synthetic sentences in the test split."""
    max_error_rate: float = Field(default=0.1, ge=0, le=1)
    """Maximum fraction of unusable files. The stage fails above it, with exit status 1."""
    limit: int | None = Field(default=None, gt=0)
    """Maximum number of utterances of each source and split, for trial runs. Null keeps all."""
    min_seconds: float = Field(default=0.1, ge=0)
    """Minimum length of a recording, in seconds. Shorter ones are rejected and listed in refused.json."""
    max_seconds: float = Field(default=30.0, gt=1)
    """Maximum length of an utterance, in seconds, at most the window of the teacher. Longer recordings are split at
    silences."""
    pack: bool = False
    """Join consecutive train and validation utterances of the same source, speaker and language into clips of up to
    `max_seconds`."""
