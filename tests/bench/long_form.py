"""Transcribe an hour of LibriSpeech chapters, each one long recording, with both modes of long-form decoding.

    python -m tests.bench.long_form SPEECH MODEL [--runtime openvino --precision int8]        one JSON line

The utterances of a chapter are joined with 0.3 s of silence between them, so that the time of each is known. In the
output, `untold` is the number of utterances during which the sequential transcript has no segment, and `gaps` the
number of stretches that no window covers.
"""

import argparse
import json
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from eval.audio.audiofolder import read_metadata
from eval.audio.recordings import SAMPLE_RATE, read_audio
from eval.decoding.long_form import LongTranscript, Mode, transcribe_long
from eval.decoding.transcriber import Transcriber
from eval.runtimes.registry import RUNTIMES, open_runtime
from eval.scoring.error_rates import count_errors, normalizer
from recipes.core.errors import run_main
from recipes.core.progress import track
from tests.bench.recording import SILENCE

Span = tuple[float, float]
"""Start and end in s."""


@dataclass(frozen=True)
class Chapter:
    """The utterances of a chapter as one recording."""

    samples: np.ndarray
    spans: list[Span]
    """Of each utterance."""
    text: str


def join_chapters(folder: Path, seconds: float) -> list[Chapter]:
    """Return whole chapters until they are at least `seconds` long together."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for name, row in read_metadata(folder, "chapters"):
        rows.setdefault("-".join(Path(name).stem.split("-")[:2]), []).append((name, row["text"]))
    chapters: list[Chapter] = []
    while rows and sum(len(chapter.samples) for chapter in chapters) < seconds * SAMPLE_RATE:
        pieces: list[np.ndarray] = []
        spans: list[Span] = []
        utterances = sorted(rows.pop(min(rows)))
        for name, _ in utterances:
            start = sum(map(len, pieces)) / SAMPLE_RATE
            pieces += [read_audio(folder / name), SILENCE]
            spans.append((start, start + len(pieces[-2]) / SAMPLE_RATE))
        chapters.append(Chapter(np.concatenate(pieces), spans, " ".join(text for _, text in utterances)))
    return chapters


def overlaps(span: Span, others: list[Span]) -> bool:
    """Return whether any of the other spans overlaps this one."""
    return any(start < span[1] and span[0] < end for start, end in others)


def summarize(transcripts: list[LongTranscript], chapters: list[Chapter], mode: Mode) -> dict[str, Any]:
    """Return errors, windows and gaps over all chapters; for sequential decoding, utterances without a segment too."""
    normalize = normalizer("basic", Path())
    errors = count_errors(
        [normalize(chapter.text) for chapter in chapters], [normalize(transcript.text) for transcript in transcripts]
    )
    windows = [
        [(first / SAMPLE_RATE, last / SAMPLE_RATE) for first, last in transcript.windows] for transcript in transcripts
    ]
    inner_gaps = sum(later[0] > earlier[1] for spans in windows for earlier, later in pairwise(spans))
    outer_gaps = sum(
        spans[0][0] > 0 or spans[-1][1] * SAMPLE_RATE < len(chapter.samples)
        for spans, chapter in zip(windows, chapters, strict=True)
    )
    row = {
        "wer": round(errors.rate, 1), "substitutions": int(errors.substitutions.sum()),
        "deletions": int(errors.deletions.sum()), "insertions": int(errors.insertions.sum()),
        "windows": sum(map(len, windows)), "gaps": inner_gaps + outer_gaps,
    }  # fmt: skip
    if mode == "sequential":
        segments = [[(start, end) for start, end, _ in transcript.cues] for transcript in transcripts]
        row["untold"] = sum(
            not overlaps(span, spans)
            for chapter, spans in zip(chapters, segments, strict=True)
            for span in chapter.spans
        )
    return row


def main() -> None:
    """Transcribe all chapters in both modes and summarize."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--runtime", choices=RUNTIMES, default="torch")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seconds", type=float, default=3600)
    args = parser.parse_args()
    chapters = join_chapters(args.speech / "librispeech-mini" / "train", args.seconds)
    runtime = open_runtime(args.runtime, args.model, args.precision, len(os.sched_getaffinity(0)))
    transcriber = Transcriber(runtime, args.model, "en")
    modes: tuple[Mode, ...] = ("sequential", "chunked")
    rows = {
        mode: summarize(
            [transcribe_long(transcriber, chapter.samples, mode) for chapter in track(chapters, mode, unit="chapter")],
            chapters,
            mode,
        )
        for mode in modes
    }
    print(json.dumps({
        "bench": "long_form",
        "seconds": round(sum(len(chapter.samples) for chapter in chapters) / SAMPLE_RATE, 1),
        "recordings": len(chapters), "utterances": sum(len(chapter.spans) for chapter in chapters),
        "words": sum(len(chapter.text.split()) for chapter in chapters),
        **rows,
    }))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
