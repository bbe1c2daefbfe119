"""Test clips inside the report: small enough to carry along, played by any browser."""

import base64
import io
from collections.abc import Iterable
from pathlib import Path

import soundfile

from eval.audio.recordings import SAMPLE_RATE, AudioError, read_audio
from eval.audio.utterances import read_utterances


def audio_players(corpus: Path, ids: Iterable[str]) -> dict[str, str]:
    """MP3 data URIs by utterance id, about 4 kB a second; recordings that are gone since are left out."""
    wanted, found = set(ids), dict[str, str]()
    for item in read_utterances(corpus, "test"):
        if item.id in wanted:
            try:
                samples = read_audio(item.audio)
            except AudioError:
                continue
            buffer = io.BytesIO()
            soundfile.write(buffer, samples, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.5)
            found[item.id] = f"data:audio/mpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return found
