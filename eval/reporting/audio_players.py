"""Audio of test clips inside the report, small enough for one file and playable in every browser."""

import base64
import io
from collections.abc import Collection
from pathlib import Path

import soundfile

from eval.audio.recordings import SAMPLE_RATE, AudioError, read_audio
from eval.audio.utterances import read_utterances


def audio_players(corpus: Path, ids: Collection[str]) -> dict[str, str]:
    """Return MP3 data URIs, about 4 kB per second, by the id of the test utterance.

    Recordings that can no longer be read are left out.
    """
    uris: dict[str, str] = {}
    for utterance in read_utterances(corpus, "test"):
        if utterance.id in ids:
            try:
                samples = read_audio(utterance.audio)
            except AudioError:
                continue
            mp3 = io.BytesIO()
            soundfile.write(mp3, samples, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.5)
            uris[utterance.id] = f"data:audio/mpeg;base64,{base64.b64encode(mp3.getvalue()).decode()}"
    return uris
