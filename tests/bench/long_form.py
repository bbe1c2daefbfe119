"""An hour of LibriSpeech chapters, each one long recording, through both ways of reading what is longer than a window.

    python -m tests.bench.long_form SPEECH MODEL [--runtime openvino --precision int8]        one JSON line

Utterances are joined with 0.3 s between them, so the place of each is known: `untold` are those during which the
sequential text has no segment. `gaps` counts stretches that no window holds.
"""

import argparse
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.audio.audiofolder import read_metadata
from eval.audio.recordings import SAMPLE_RATE, read_audio
from eval.decoding.long_form import LongTranscript, Mode, transcribe_long
from eval.decoding.transcriber import Transcriber
from eval.runtimes.registry import RUNTIMES, open_runtime
from eval.scoring.error_rates import count_errors, normalizer
from tests.bench.recording import GAP

Span = tuple[float, float]


def chapters(folder: Path, seconds: float) -> list[tuple[np.ndarray, list[Span], str]]:
    """Samples [N], the place of each utterance in s and the text of whole chapters, up to that length together."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for name, row in read_metadata(folder, "chapters"):
        rows.setdefault("-".join(Path(name).stem.split("-")[:2]), []).append((name, row["text"]))
    made: list[tuple[np.ndarray, list[Span], str]] = []
    while rows and sum(len(samples) for samples, _, _ in made) < seconds * SAMPLE_RATE:
        parts: list[np.ndarray] = []
        spans: list[Span] = []
        said = sorted(rows.pop(min(rows)))
        for name, _ in said:
            start = sum(map(len, parts)) / SAMPLE_RATE
            parts += [read_audio(folder / name), GAP]
            spans.append((start, start + len(parts[-2]) / SAMPLE_RATE))
        made.append((np.concatenate(parts), spans, " ".join(text for _, text in said)))
    return made


def overlaps(span: Span, others: list[Span]) -> bool:
    """Whether any of these is there during the span."""
    return any(start < span[1] and span[0] < end for start, end in others)


def figures(heard: list[LongTranscript], made: list[tuple[np.ndarray, list[Span], str]], mode: Mode) -> dict[str, Any]:
    """What became of every utterance."""
    normalize = normalizer("basic", Path())
    errors = count_errors([normalize(text) for _, _, text in made], [normalize(said.text) for said in heard])
    windows = [[(first / SAMPLE_RATE, last / SAMPLE_RATE) for first, last in said.windows] for said in heard]
    found = {
        "wer": round(errors.rate, 1), "substitutions": int(errors.substitutions.sum()),
        "deletions": int(errors.deletions.sum()), "insertions": int(errors.insertions.sum()),
        "windows": sum(map(len, windows)),
        "gaps": sum(later[0] > earlier[1] for each in windows for earlier, later in pairwise(each))
        + sum(each[0][0] > 0 or each[-1][1] * SAMPLE_RATE < len(one[0]) for each, one in zip(windows, made, strict=True)),  # noqa: E501
    }  # fmt: skip
    if mode == "sequential":
        told = [[(start, end) for start, end, _ in said.cues] for said in heard]
        found["untold"] = sum(
            not overlaps(span, each) for (_, spans, _), each in zip(made, told, strict=True) for span in spans
        )
    return found


def main() -> None:
    """Read in both modes, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--runtime", choices=RUNTIMES, default="torch")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seconds", type=float, default=3600)
    given = parser.parse_args()
    made = chapters(given.speech / "librispeech-mini" / "train", given.seconds)
    runtime = open_runtime(given.runtime, given.model, given.precision, len(os.sched_getaffinity(0)))
    transcriber = Transcriber(runtime, given.model, "en")
    modes: tuple[Mode, ...] = ("sequential", "chunked")
    print(json.dumps({
        "bench": "long_form", "seconds": round(sum(len(samples) for samples, _, _ in made) / SAMPLE_RATE, 1),
        "recordings": len(made), "utterances": sum(len(spans) for _, spans, _ in made),
        "words": sum(len(text.split()) for _, _, text in made),
        **{mode: figures([transcribe_long(transcriber, one[0], mode) for one in tqdm(made, mode)], made, mode)
           for mode in modes},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
