"""Run an hour of LibriSpeech as one recording up to the labels stage: split at silences, label, rebuild the timeline.

    python -m tests.bench.recording SPEECH        one JSON line

The utterances of whole chapters are joined with 0.3 s of silence between them, so that the time of each is known. The
start of a piece is compared with the position at which its samples are found in the recording, and each line of the
rebuilt timeline with the start of its piece.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from data_prep.labels.timeline import build_timeline
from eval.audio.recordings import SAMPLE_RATE, AudioReference, read_audio
from eval.audio.utterances import read_utterances
from recipes.core.errors import run_main
from tests.conftest import ROOT
from tests.stages.conftest import sottovoce, write_recipe
from tests.stages.test_labels import folder, stored

SILENCE = np.zeros(round(0.3 * SAMPLE_RATE), np.float32)


def join_utterances(split: Path, seconds: float) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Join whole chapters until they are longer than `seconds`; return samples [N], and each utterance's span in s."""
    chapters: dict[str, list[str]] = {}
    for line in (split / "metadata.jsonl").read_text().splitlines():
        name = json.loads(line)["file_name"]
        chapters.setdefault("-".join(Path(name).stem.split("-")[:2]), []).append(name)
    pieces: list[np.ndarray] = []
    spans: list[tuple[float, float]] = []
    length = 0
    for chapter in sorted(chapters):
        for name in sorted(chapters[chapter]):
            clip = read_audio(split / name)
            spans.append((length / SAMPLE_RATE, (length + len(clip)) / SAMPLE_RATE))
            pieces += [clip, SILENCE]
            length += len(clip) + len(SILENCE)
        if length > seconds * SAMPLE_RATE:
            break
    return np.concatenate(pieces), spans


def offset_error_s(piece: np.ndarray, recording: np.ndarray, start: float) -> float:
    """Return the distance in s between a piece's `start` and the position of its samples in the recording.

    The 2,000 samples around the piece's loudest are searched for within 0.2 s of where they should be.
    """
    offset = max(0, min(int(np.abs(piece).argmax()) - 1000, len(piece) - 2000))
    excerpt = piece[offset : offset + 2000]
    low = max(0, offset + round((start - 0.2) * SAMPLE_RATE))
    searched = recording[low : low + round(0.4 * SAMPLE_RATE) + len(excerpt)]
    windows = np.lib.stride_tricks.sliding_window_view(searched, len(excerpt))
    position = low + int(np.square(windows - excerpt).sum(axis=1).argmin()) - offset
    return abs(position / SAMPLE_RATE - start)


def main() -> None:
    """Make the recording, run the stages up to labels, and compare times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--seconds", type=float, default=3600)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "audio").mkdir()
        recording, spoken = join_utterances(args.speech / "librispeech-mini" / "train", args.seconds)
        soundfile.write(Path(scratch) / "audio" / "hour.flac", recording, SAMPLE_RATE)
        recording = read_audio(Path(scratch) / "audio" / "hour.flac")
        recipe = write_recipe(Path(scratch), args.speech)
        source = f"corpus.sources=[{{audio: {scratch}/audio, name: long}}]"
        options = [source, "corpus.validation_fraction=0", "labels.batch_size=32", "labels.fallback=[]"]
        started = time.perf_counter()
        subprocess.run(sottovoce("run", str(recipe), "--until", "corpus", *options), cwd=ROOT, check=True)
        corpus_s = time.perf_counter() - started
        subprocess.run(sottovoce("run", str(recipe), "--until", "labels", *options), cwd=ROOT, check=True)
        pieces = read_utterances(folder(recipe, "corpus"), "train")
        spans = [AudioReference.parse(piece.audio[0]).time_range or (0.0, 0.0) for piece in pieces]
        errors = [
            offset_error_s(read_audio(piece.audio), recording, start)
            for piece, (start, _) in zip(pieces, spans, strict=True)
        ]
        (cues,) = build_timeline(stored(recipe)).values()
    starts = sorted(start for start, _ in spans)
    line_starts = {round(start, 3) for start, _, _ in cues}
    covered = sum(min(end, b) - max(start, a) for start, end in spoken for a, b in spans if a < end and start < b)
    print(json.dumps({
        "bench": "recording", "seconds": round(len(recording) / SAMPLE_RATE, 1), "utterances": len(spoken),
        "pieces": len(pieces), "longest_s": round(max(end - start for start, end in spans), 3),
        "in_order": cues == sorted(cues, key=lambda cue: cue[0]),
        "offset_error_s": round(max(errors), 5),
        "line_offset_error_s": round(max(min(abs(line - start) for start in starts) for line in line_starts), 4),
        "speech_covered": round(covered / sum(end - start for start, end in spoken), 4),
        "cuts_inside_an_utterance": sum(any(a + 0.1 < end < b - 0.1 for a, b in spoken) for _, end in spans),
        "lines": len(cues), "corpus_stage_s": round(corpus_s, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
