"""Results of transcribing audio files, with their JSON form."""

from dataclasses import asdict, dataclass
from typing import Any

from eval.decoding.subtitles import Cue
from eval.decoding.timestamps import TimedWord
from eval.decoding.transcriber import DetectedLanguage


@dataclass(frozen=True)
class FileTranscript:
    """The transcript of one audio file."""

    seconds: float
    """Length of the audio."""
    text: str
    detected: DetectedLanguage | None = None
    """None unless detection was requested."""
    mean_logprob: float | None = None
    """Mean natural-log probability of the tokens; None for files longer than the model's window."""
    segments: list[Cue] | None = None
    """None unless requested."""
    words: list[TimedWord] | None = None
    """None unless requested."""

    @property
    def cues(self) -> list[Cue]:
        """One cue per word if the words have times, else one per segment; empty without times."""
        if self.words is not None:
            return [(word.start, word.end, word.word) for word in self.words]
        return self.segments or []

    def to_json(self) -> dict[str, Any]:
        """Return the values that are present, as `sottovoce transcribe --format json` prints them."""
        row: dict[str, Any] = {"seconds": self.seconds}
        if self.detected is not None:
            row |= self.detected._asdict()
        row["text"] = self.text
        if self.mean_logprob is not None:
            row["mean_logprob"] = self.mean_logprob
        if self.segments is not None:
            row["segments"] = [{"start": start, "end": end, "text": text} for start, end, text in self.segments]
        if self.words is not None:
            row["words"] = [asdict(word) for word in self.words]
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "FileTranscript":
        """Rebuild a transcript from the result of `to_json`."""
        segments, words = row.get("segments"), row.get("words")
        return cls(
            seconds=row["seconds"],
            text=row["text"],
            detected=DetectedLanguage(row["language"], row["no_speech_prob"]) if "language" in row else None,
            mean_logprob=row.get("mean_logprob"),
            segments=None if segments is None else [(cue["start"], cue["end"], cue["text"]) for cue in segments],
            words=None if words is None else [TimedWord(**word) for word in words],
        )


@dataclass(frozen=True)
class UnreadableFile:
    """An audio file that could not be read."""

    reason: str


FileResult = FileTranscript | UnreadableFile
