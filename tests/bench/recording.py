"""An hour of LibriSpeech chapters as one recording: split, labelled, rebuilt in order.

    python -m tests.bench.recording SPEECH        one JSON line

Utterances of whole chapters are joined with 0.3 s between them, so every place is known. A piece's offset is held
against the place where its samples are found in the recording, a line of the rebuilt timeline against its piece.
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
from tests.conftest import ROOT
from tests.stages.conftest import sottovoce, write_recipe
from tests.stages.test_labels import folder, stored

GAP = np.zeros(round(0.3 * SAMPLE_RATE), np.float32)


def recording(chapters: Path, seconds: float) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Samples [N] of whole chapters up to that length, and where each utterance stands in s."""
    rows: dict[str, list[str]] = {}
    for line in (chapters / "metadata.jsonl").read_text().splitlines():
        name = json.loads(line)["file_name"]
        rows.setdefault("-".join(Path(name).stem.split("-")[:2]), []).append(name)
    parts: list[np.ndarray] = []
    spoken: list[tuple[float, float]] = []
    length = 0
    for chapter in sorted(rows):
        for name in sorted(rows[chapter]):
            clip = read_audio(chapters / name)
            spoken.append((length / SAMPLE_RATE, (length + len(clip)) / SAMPLE_RATE))
            parts += [clip, GAP]
            length += len(clip) + len(GAP)
        if length > seconds * SAMPLE_RATE:
            break
    return np.concatenate(parts), spoken


def misplaced(heard: np.ndarray, whole: np.ndarray, start: float) -> float:
    """Seconds between where a piece says it starts and where its loudest samples are found, within 0.2 s."""
    at = max(0, min(int(np.abs(heard).argmax()) - 1000, len(heard) - 2000))
    part = heard[at : at + 2000]
    low = max(0, at + round((start - 0.2) * SAMPLE_RATE))
    area = np.lib.stride_tricks.sliding_window_view(whole[low : low + round(0.4 * SAMPLE_RATE) + len(part)], len(part))
    found = low + int(np.square(area - part).sum(axis=1).argmin()) - at
    return abs(found / SAMPLE_RATE - start)


def main() -> None:
    """Make the recording, run to the labels, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--seconds", type=float, default=3600)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "audio").mkdir()
        whole, spoken = recording(given.speech / "librispeech-mini" / "train", given.seconds)
        soundfile.write(Path(place) / "audio" / "hour.flac", whole, SAMPLE_RATE)
        whole = read_audio(Path(place) / "audio" / "hour.flac")
        recipe = write_recipe(Path(place), given.speech)
        source = f"corpus.sources=[{{audio: {place}/audio, name: long}}]"
        options = [source, "corpus.validation_fraction=0", "labels.batch_size=32", "labels.fallback=[]"]
        started = time.perf_counter()
        subprocess.run(sottovoce("run", str(recipe), "--until", "corpus", *options), cwd=ROOT, check=True)
        split = time.perf_counter() - started
        subprocess.run(sottovoce("run", str(recipe), "--until", "labels", *options), cwd=ROOT, check=True)
        pieces = read_utterances(folder(recipe, "corpus"), "train")
        times = [AudioReference.parse(piece.audio[0]).seconds or (0.0, 0.0) for piece in pieces]
        errors = [
            misplaced(read_audio(piece.audio), whole, start) for piece, (start, _) in zip(pieces, times, strict=True)
        ]
        (lines,) = build_timeline(stored(recipe)).values()
        starts = sorted(start for start, _ in times)
        found = {round(line.start, 3) for line in lines}
        covered = sum(min(end, b) - max(start, a) for start, end in spoken for a, b in times if a < end and start < b)
    print(json.dumps({
        "bench": "recording", "seconds": round(len(whole) / SAMPLE_RATE, 1), "utterances": len(spoken),
        "pieces": len(pieces), "longest_s": round(max(end - start for start, end in times), 3),
        "in_order": [line.start for line in lines] == sorted(line.start for line in lines),
        "offset_error_s": round(max(errors), 5),
        "line_offset_error_s": round(max(min(abs(start - one) for one in starts) for start in found), 4),
        "speech_covered": round(covered / sum(end - start for start, end in spoken), 4),
        "cuts_inside_an_utterance": sum(any(a + 0.1 < end < b - 0.1 for a, b in spoken) for _, end in times),
        "lines": len(lines), "corpus_stage_s": round(split, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
