"""An exported student beside torch, on the same audio.

B batch, F mel bins, T frames, S encoder positions, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.audio.recordings import read_audio
from eval.decoding.transcriber import Transcriber
from eval.runtimes.interface import Generator, Runtime
from eval.scoring.error_rates import Normalize, bootstrap, count_errors


@dataclass(frozen=True)
class ParityClip:
    """What torch makes of one clip."""

    mel_BFT: np.ndarray
    encoder_BSD: np.ndarray
    logits: list[np.ndarray]
    """[B, V] after the prompt and after each token of the greedy text."""
    tokens: list[int]
    text: str
    truth: str | None
    """The normalised transcript, where the recording has one."""


@dataclass(frozen=True)
class TorchReference:
    """Torch on all clips, one at a time as the device runs them."""

    transcriber: Transcriber
    clips: list[ParityClip]
    max_tokens: int | None
    normalize: Normalize

    @classmethod
    def take(
        cls, transcriber: Transcriber, recordings: Sequence[tuple[Sequence[str], str | None]], max_tokens: int | None,
        normalize: Normalize,
    ) -> "TorchReference":  # fmt: skip
        """Run torch over the recordings, each with its transcript where there is one."""
        clips = []
        for audio, truth in tqdm(recordings, "parity torch", unit="clip"):
            mel_BFT = transcriber.features([read_audio(audio)])
            (transcript,) = transcriber.decode(mel_BFT, max_tokens=max_tokens)
            encoder_BSD, logits = forced_decoding(
                transcriber.runtime, mel_BFT, transcriber.format.prompt, transcript.tokens
            )
            spoken = normalize(truth) if truth else None
            clips.append(
                ParityClip(mel_BFT, encoder_BSD, logits, transcript.tokens, normalize(transcript.text), spoken)
            )
        return cls(transcriber, clips, max_tokens, normalize)


def forced_decoding(
    runtime: Runtime, mel_BFT: np.ndarray, prompt: list[int], tokens: list[int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Encoder states, and the logits along a given text: every cached step is exercised, none depends on a tie."""
    state = runtime.encode(mel_BFT)
    encoder_BSD = np.array(state.encoder_BSD, np.float32)
    if isinstance(runtime, Generator):
        return encoder_BSD, runtime.along(state, prompt, tokens)
    logits_BV, state = runtime.step(np.array([prompt], np.int64), state)
    logits = [logits_BV.copy()]
    for token in tokens[:-1]:
        logits_BV, state = runtime.step(np.array([[token]], np.int64), state)
        logits.append(logits_BV.copy())
    return encoder_BSD, logits


def compare_with_torch(reference: TorchReference, runtime: Runtime, name: str) -> dict[str, Any]:
    """Errors of encoder states and logits, the share of clips with equal greedy tokens, WER beside torch's."""
    torch_side = reference.transcriber
    encoder, logits, equal, texts = RunningError(), RunningError(), 0, list[str]()
    other = Transcriber.with_runtime(torch_side, runtime)
    for clip in tqdm(reference.clips, f"parity {name}", unit="clip"):
        encoder_BSD, steps = forced_decoding(runtime, clip.mel_BFT, torch_side.format.prompt, clip.tokens)
        encoder.add(clip.encoder_BSD, encoder_BSD)
        for expected, found in zip(clip.logits, steps, strict=True):
            logits.add(expected, found)
        (transcript,) = other.decode(clip.mel_BFT, max_tokens=reference.max_tokens)
        equal += transcript.tokens == clip.tokens
        texts.append(reference.normalize(transcript.text))
    return {
        "encoder": encoder.figures(),
        "logits": logits.figures(),
        "equal_text": equal / len(reference.clips),
        "wer_increase": _wer_increase(reference.clips, texts),
    }


def _wer_increase(clips: Sequence[ParityClip], texts: Sequence[str]) -> dict[str, float] | None:
    """WER above torch's on the clips with a transcript, points, with its 95 % interval; None where none has one."""
    rows = [(clip.truth, clip.text, text) for clip, text in zip(clips, texts, strict=True) if clip.truth]
    if not rows:
        return None
    truth, expected, found = (list(column) for column in zip(*rows, strict=True))
    return asdict(bootstrap(count_errors(truth, found), count_errors(truth, expected), resamples=1000, seed=0))


class RunningError:
    """Running error between expected and found arrays."""

    def __init__(self) -> None:
        self._largest = self._peak = self._absolute = self._square = 0.0
        self._count = 0

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Count one pair of arrays of one shape."""
        error = np.abs(expected.astype(np.float64) - found)
        self._largest = max(self._largest, float(error.max()))
        self._peak = max(self._peak, float(np.abs(expected).max()))
        self._absolute += float(error.sum())
        self._square += float((error**2).sum())
        self._count += error.size

    def figures(self) -> dict[str, float]:
        """Largest and mean absolute error; PSNR = 20 log10(largest expected value / root mean square error), dB."""
        rmse = (self._square / self._count) ** 0.5
        psnr = 20 * float(np.log10(self._peak / rmse)) if rmse > 0 else 300.0
        return {"max_abs": self._largest, "mean_abs": self._absolute / self._count, "psnr_db": psnr}
