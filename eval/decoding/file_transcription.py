"""Transcribe audio files of any length with one model: what `sottovoce transcribe` does for each file.

PyTorch is imported only for what needs it: word times and drafts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.audio.recordings import AUDIO_SUFFIXES, SAMPLE_RATE, AudioError, read_audio
from eval.decoding.file_results import FileResult, FileTranscript, UnreadableFile
from eval.decoding.long_form import Mode, transcribe_long
from eval.decoding.transcriber import DetectedLanguage, Transcriber, Transcript
from eval.runtimes.interface import Runtime
from eval.runtimes.model_format import JsonSettings
from eval.runtimes.registry import open_runtime
from recipes.core.errors import UserError

if TYPE_CHECKING:
    from eval.decoding.word_times import WordTimer

DETECT = "detect"
"""Value of `TranscriptionOptions.language` that asks to detect the language of each file."""


@dataclass(frozen=True)
class TranscriptionOptions:
    """How files are transcribed."""

    language: str = "en"
    """Language code, or DETECT. English-only models ignore it."""
    task: str = "transcribe"
    """`transcribe`, or `translate` to English."""
    segments: bool = False
    """Whether to return segments with their times."""
    words: bool = False
    """Whether to return words with their times. Needs PyTorch and a model with alignment heads."""
    long_form: Mode | None = None
    """Mode for files longer than the model's window; None takes `sequential` if the model writes timestamps or times
    are requested, else `chunked`."""
    carry: bool = False
    """Whether each window of a long file gets the text so far as previous text; mode `sequential` only."""
    previous: str = ""
    """Text that came before, or words to expect."""


def find_audio_files(paths: Sequence[Path]) -> list[Path]:
    """Return the given files, with each folder replaced by the sorted audio files below it.

    Raises UserError if a folder has no audio file.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
        if not inside:
            raise UserError(f"audio {path}: expected audio files in this folder, found none; name another")
        files += inside
    return files


def check_draft_options(runtime: str | None, long_form: Mode | None, *, timed: bool) -> None:
    """Raise UserError if the options cannot be combined with a draft model.

    Args:
        runtime: The requested runtime; None if any will do.
        long_form: The requested mode for long files; None if any will do.
        timed: Whether timestamps or subtitles are requested.
    """
    if runtime not in (None, "torch") or timed:
        raise UserError("--draft: works in --runtime torch and without timestamps or subtitles; leave one of them out")
    if long_form == "sequential":
        raise UserError("--draft: --long sequential needs timestamps, which cannot be drafted; use --long chunked")


class FileTranscriber:
    """A model that transcribes audio files.

    Args:
        runtime: The loaded model.
        folder: Its model folder.
        options: How to transcribe.

    Raises UserError if the options ask for something that the model cannot do.
    """

    def __init__(self, runtime: Runtime, folder: Path, options: TranscriptionOptions):
        # The prompt needs some language until one is detected.
        language = _any_language(folder) if options.language == DETECT else options.language
        self.transcriber, self.options = Transcriber(runtime, folder, language, options.task), options
        self.word_timer = _word_timer(self.transcriber, folder) if options.words else None

    def transcribe_files(self, paths: Sequence[Path]) -> Iterator[FileResult]:
        """Read and transcribe one file after the other."""
        for path in paths:
            try:
                samples = read_audio(path)
            except AudioError as error:
                yield UnreadableFile(str(error))
            else:
                yield from self.transcribe([samples])

    def transcribe(self, clips: Sequence[np.ndarray]) -> list[FileTranscript]:
        """Transcribe clips [N] at 16 kHz of any length; those that fit into the model's window form one batch.

        If the language is to be detected, every clip is a batch of its own, since the language is part of the prompt.
        """
        if self.options.language == DETECT:
            return [self._detect_and_transcribe(clip) for clip in clips]
        window = self.transcriber.format.window_samples
        short = [clip for clip in clips if len(clip) <= window]
        transcripts = iter(self._transcribe_short(short))
        return [next(transcripts) if len(clip) <= window else self._transcribe_long(clip) for clip in clips]

    def _detect_and_transcribe(self, clip: np.ndarray) -> FileTranscript:
        transcriber = self.transcriber
        (detected,) = transcriber.detect_language(transcriber.features([clip]))
        detected = DetectedLanguage(detected.language, round(detected.no_speech_prob, 4))
        if detected.language is not None:
            prompt = transcriber.format.prompt_for(detected.language)
            transcriber.format = replace(transcriber.format, prompt=prompt)
        if len(clip) <= transcriber.format.window_samples:
            (transcript,) = self._transcribe_short([clip])
        else:
            transcript = self._transcribe_long(clip)
        return replace(transcript, detected=detected)

    def _transcribe_short(self, clips: Sequence[np.ndarray]) -> list[FileTranscript]:
        """Transcribe clips that fit into the model's window, as one batch."""
        if not clips:
            return []
        transcripts = self.transcriber.transcribe(
            clips, scores=True, timestamps=self.options.segments, previous=self.options.previous
        )
        return [self._short_result(clip, transcript) for clip, transcript in zip(clips, transcripts, strict=True)]

    def _short_result(self, clip: np.ndarray, transcript: Transcript) -> FileTranscript:
        seconds = len(clip) / SAMPLE_RATE
        return FileTranscript(
            seconds=round(seconds, 3),
            text=transcript.text,
            mean_logprob=round(transcript.mean_logprob, 4),
            segments=self.transcriber.segments(transcript, seconds) if self.options.segments else None,
            words=self.word_timer.words(clip, transcript.tokens) if self.word_timer else None,
        )

    def _transcribe_long(self, samples: np.ndarray) -> FileTranscript:
        """Transcribe a recording that is longer than the model's window."""
        options, timed = self.options, self.options.segments or self.options.words
        mode: Mode = options.long_form or ("sequential" if self.transcriber.writes_timestamps or timed else "chunked")
        if timed and mode == "chunked":
            raise UserError(
                "--long chunked: gives no times for files longer than the model's window; use --long sequential"
            )
        transcript = transcribe_long(self.transcriber, samples, mode, carry=options.carry, previous=options.previous)
        words = None
        if self.word_timer is not None:
            words = [
                word
                for (start, end), tokens in zip(transcript.windows, transcript.tokens, strict=True)
                for word in self.word_timer.words(samples[start:end], tokens, start / SAMPLE_RATE)
            ]
        return FileTranscript(
            seconds=round(len(samples) / SAMPLE_RATE, 3),
            text=transcript.text,
            segments=transcript.cues if options.segments else None,
            words=words,
        )

    @property
    def draft_summary(self) -> dict[str, float | int | None] | None:
        """Counts of drafted and accepted tokens so far (`DraftStatistics.summary`); None without a draft model."""
        statistics = getattr(self.transcriber.runtime, "statistics", None)
        return None if statistics is None else statistics.summary


def open_file_transcriber(
    folder: Path, runtime: str, precision: str, threads: int, options: TranscriptionOptions, *,
    draft: Path | None = None, draft_tokens: int | None = None,
) -> FileTranscriber:  # fmt: skip
    """Load a model folder for the transcription of files.

    Args:
        folder: The model folder.
        runtime: One of `eval.runtimes.registry.RUNTIMES`; must be `torch` with a draft model.
        precision: The artefact's precision.
        threads: Number of threads to compute with.
        options: How to transcribe.
        draft: Folder of a student that drafts for speculative decoding (`eval.decoding.speculative`).
        draft_tokens: Number of tokens to draft at once; see `SpeculativeRuntime`.
    """
    if draft is None:
        return FileTranscriber(open_runtime(runtime, folder, precision, threads), folder, options)
    from eval.decoding.speculative import open_speculative

    return FileTranscriber(open_speculative(folder, draft, threads, draft_tokens), folder, options)


def _word_timer(transcriber: Transcriber, folder: Path) -> "WordTimer":
    from eval.decoding.word_times import WordTimer

    return WordTimer.from_folder(transcriber, folder)


def _any_language(folder: Path) -> str | None:
    """Return some language code of a multilingual model; None for an English-only one."""
    file = folder / "generation_config.json"
    tokens = (JsonSettings.read(file).get("lang_to_id") if file.is_file() else None) or {}
    return next((token.strip("<|>") for token in tokens), None)
