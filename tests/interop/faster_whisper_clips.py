"""Transcribe clips with faster-whisper itself, in an environment of its own: one JSON line a clip.

    python3 -m venv VENV && VENV/bin/pip install faster-whisper
    VENV/bin/python tests/interop/faster_whisper_clips.py MODEL/ctranslate2-fp32 AUDIO...

Greedy, as `sottovoce transcribe` is. Three things of faster-whisper 1.2 are worked around:

- it pads the log-mel with 0; silence is appended to the audio instead, as Whisper's own padding does;
- it makes every window 30 s long; a model with a shorter one gets its own (`pad_or_trim`, the only patch);
- it suppresses the first token of " -", which in a vocabulary of bytes is the space; the model's own list is given.
"""

import argparse
import functools
import json
from pathlib import Path

import faster_whisper.transcribe
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.audio import decode_audio, pad_or_trim


def main() -> None:
    """Print what it hears in each file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path, help="folder with model.bin")
    parser.add_argument("audio", nargs="+")
    given = parser.parse_args()
    model = WhisperModel(str(given.model), device="cpu", cpu_threads=1)
    suppressed = json.loads((given.model / "config.json").read_text())["suppress_ids"]
    window = model.feature_extractor
    if window.chunk_length != 30:
        faster_whisper.transcribe.pad_or_trim = functools.partial(pad_or_trim, length=window.nb_max_frames)
    for audio in given.audio:
        samples = decode_audio(audio)
        segments, _ = model.transcribe(
            np.pad(samples, (0, max(0, window.n_samples - len(samples)))),
            language="en",
            beam_size=1,
            temperature=0,
            vad_filter=False,
            without_timestamps=True,
            condition_on_previous_text=False,
            suppress_tokens=list(suppressed),  # it appends to the list
        )
        print(json.dumps({"audio": audio, "text": "".join(segment.text for segment in segments).strip()}), flush=True)


if __name__ == "__main__":
    main()
