"""Long recordings split at silences; short neighbours of one speaker packed. Both up to the teacher's window.

Speech is found by Silero VAD (MIT, from the `silero-vad` wheel), run over whole blocks by ONNX Runtime: 285 times as
fast as the audio on one core, and within 2e-6 of the package's own torch model.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from eval.audio.recordings import SAMPLE_RATE, AudioReference, format_seconds
from eval.audio.utterances import Utterance

FRAME = 512 / SAMPLE_RATE
"""Seconds of one speech probability: 0.032."""

_CONTEXT = 64  # samples of the frame before, which the model also sees
_SPEECH = 0.5  # probability; Silero's own default
_MARGIN = 0.2  # seconds of silence kept on either side of speech
_LONG_SILENCE = 2.0  # seconds; longer ones are left out


class SpeechDetector:
    """Speech probabilities of a stream of blocks of 16 kHz samples."""

    def __init__(self) -> None:
        self._session = _session()
        self._states = {name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c")}
        self._rest = np.zeros(_CONTEXT, np.float32)
        self._probabilities: list[np.ndarray] = []

    def feed(self, samples: np.ndarray) -> None:
        """The next samples [N]."""
        samples = np.concatenate([self._rest, samples])
        frames = (len(samples) - _CONTEXT) // 512
        if frames:
            windows = np.lib.stride_tricks.sliding_window_view(samples, _CONTEXT + 512)[::512][:frames]
            inputs = {"input": np.ascontiguousarray(windows), **self._states}
            probabilities, self._states["h"], self._states["c"] = self._session.run(None, inputs)
            self._probabilities.append(probabilities)
        self._rest = samples[frames * 512 :]

    @property
    def probabilities(self) -> np.ndarray:
        """One for each whole FRAME so far."""
        return np.concatenate(self._probabilities) if self._probabilities else np.zeros(0, np.float32)


@cache
def _session() -> Any:
    import onnxruntime

    package = find_spec("silero_vad")
    assert package is not None
    assert package.origin is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = Path(package.origin).parent / "data" / "silero_vad_16k_sequence.onnx"
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def split_points(probability: np.ndarray, seconds: float, longest: float) -> list[tuple[float, float]]:
    """Pieces (start, end) in seconds, each at most `longest`, in order, that hold all speech.

    A piece ends in the longest silence of the second half of the window, or where speech is least likely if there is
    none. Silence beyond two seconds belongs to no piece. No speech at all gives no pieces.
    """
    silent = probability < _SPEECH
    if silent.all():
        return []
    pieces = []
    for start, end in _islands(silent, round(_LONG_SILENCE / FRAME)):
        first = max(0.0, start * FRAME - _MARGIN)
        last = min(seconds, end * FRAME + _MARGIN) if end < len(silent) else seconds
        while last - first > longest:
            low, high = round((first + longest / 2) / FRAME), int((first + longest) / FRAME)
            cut = _best_cut(probability[low:high], silent[low:high]) + low
            pieces.append((first, cut * FRAME))
            first = cut * FRAME
        pieces.append((first, last))
    return [(round(first, 3), min(round(last, 3), seconds)) for first, last in pieces]


def _islands(silent: np.ndarray, longest_silence: int) -> Iterator[tuple[int, int]]:
    """Frames (start, end) of speech with no silence longer than that inside."""
    spoken = np.flatnonzero(~silent)
    breaks = np.flatnonzero(np.diff(spoken) > longest_silence)
    starts = spoken[np.concatenate([[0], breaks + 1])]
    ends = spoken[np.concatenate([breaks, [len(spoken) - 1]])] + 1
    yield from zip(starts.tolist(), ends.tolist(), strict=True)


def _best_cut(probability: np.ndarray, silent: np.ndarray) -> int:
    """The middle of the longest silence; the later of two. Without one the frame least like speech."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], silent, [False]])))
    if not len(edges):
        return int(probability.argmin())
    starts, ends = edges[::2], edges[1::2]
    longest = len(starts) - 1 - int((ends - starts)[::-1].argmax())
    return int(starts[longest] + ends[longest]) // 2


def split_recording(item: Utterance, probability: np.ndarray, longest: float) -> list[Utterance]:
    """A long recording as utterances of its pieces; the transcript of the whole belongs to none of them."""
    (audio,) = item.audio
    whole = AudioReference.parse(audio)
    pieces = []
    for start, end in split_points(probability, item.seconds, longest):
        name = f"{item.id}#t={format_seconds(start)},{format_seconds(end)}"
        piece = str(replace(whole, seconds=(start, end)))
        length = end - start
        pieces.append(
            replace(item, id=name, audio=[piece], seconds=length, text=None, parts=[name], part_seconds=[length])
        )
    return pieces


def pack_utterances(utterances: Sequence[Utterance], longest: float) -> list[Utterance]:
    """Neighbours of one source, split, speaker and language joined while they fit; all others as they are.

    An utterance without a speaker is joined to nothing but its own recording's pieces.
    """
    packed: list[Utterance] = []
    for item in utterances:
        if packed and item.split != "test" and _may_join(packed[-1], item, longest):
            packed[-1] = _join(packed[-1], item)
        else:
            packed.append(item)
    return packed


def _may_join(before: Utterance, item: Utterance, longest: float) -> bool:
    alike = all(getattr(before, key) == getattr(item, key) for key in ("source", "split", "speaker", "language"))
    known = item.speaker is not None or recording_id(before.parts[-1]) == recording_id(item.id)
    # A transcript for one half alone would be a wrong reference for the whole.
    both = (before.text is None) == (item.text is None)
    return alike and known and both and before.seconds + item.seconds <= longest


def _join(before: Utterance, item: Utterance) -> Utterance:
    text = f"{before.text} {item.text}" if before.text is not None else None
    return replace(
        before, audio=before.audio + item.audio, seconds=before.seconds + item.seconds, text=text,
        parts=before.parts + item.parts, part_seconds=before.part_seconds + item.part_seconds,
        sha256=hashlib.sha256(f"{before.sha256}{item.sha256}".encode()).hexdigest(),
    )  # fmt: skip


def recording_id(name: str) -> str:
    """The id of the recording that an utterance is a part of: its own unless it was split."""
    return name.split("#t=")[0]
