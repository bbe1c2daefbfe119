"""Transcribe clips with faster-whisper, in an environment of its own; print one JSON line per clip.

    python3 -m venv VENV && VENV/bin/pip install faster-whisper
    VENV/bin/python tests/interop/faster_whisper_clips.py MODEL/ctranslate2-fp32 AUDIO...

Decoding is greedy, as in `sottovoce transcribe`. Three properties of faster-whisper 1.2 are worked around:

- It pads the log-mel spectrogram with 0. This script appends silence to the audio instead, as Whisper does.
- It makes every window 30 s long. For a model with a shorter window, `pad_or_trim` is patched; this is the only patch.
- It suppresses the first token of " -", which is the space in a byte vocabulary. This script passes the model's own
  list of suppressed tokens.
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
    """Print the text of each file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path, help="folder with model.bin")
    parser.add_argument("audio", nargs="+")
    args = parser.parse_args()
    model = WhisperModel(str(args.model), device="cpu", cpu_threads=1)
    suppressed = json.loads((args.model / "config.json").read_text())["suppress_ids"]
    window = model.feature_extractor
    if window.chunk_length != 30:
        faster_whisper.transcribe.pad_or_trim = functools.partial(pad_or_trim, length=window.nb_max_frames)
    for audio in args.audio:
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
