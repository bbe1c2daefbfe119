"""Compare an exported student with PyTorch on the same audio.

B batch, F mel bins, T mel frames, S encoder positions, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.audio.recordings import read_audio
from eval.audio.utterances import read_utterances
from eval.decoding.transcriber import Transcriber
from eval.runtimes.interface import Generator, Runtime
from eval.scoring.accuracy_rows import Interval
from eval.scoring.error_rates import Normalize, count_errors
from eval.scoring.resampling import bootstrap
from recipes.core.errors import UserError
from recipes.core.progress import track

Recording = tuple[Sequence[str], str | None]
"""References to the audio of one clip (`eval.audio`), and its transcript if it has one."""


def parity_clips(corpus: Path, count: int) -> list[Recording]:
    """Choose at most `count` clips, evenly spaced over the corpus's validation audio, or its training audio if it has
    no validation audio. Test audio is never used: nothing may be tuned on it.

    Raises UserError if the corpus has neither.
    """
    utterances = read_utterances(corpus, "validation") or read_utterances(corpus, "train")
    if not utterances:
        raise UserError(f"export.parity: expected validation or train audio in {corpus}, found none; add some")
    chosen = utterances[:: max(1, len(utterances) // count)][:count]
    return [(utterance.audio, utterance.text) for utterance in chosen]


@dataclass(frozen=True)
class ParityClip:
    """One clip, and what PyTorch computes for it."""

    mel_BFT: np.ndarray
    encoder_BSD: np.ndarray
    """Encoder states."""
    logits: list[np.ndarray]
    """[B, V] after the prompt, and after each token of the greedy text except the last."""
    tokens: list[int]
    """The greedy text."""
    text: str
    """The greedy text, normalized."""
    truth: str | None
    """The normalized transcript, or None if the recording has none."""


@dataclass(frozen=True)
class TorchReference:
    """PyTorch's results on all clips, computed one clip at a time as a device does."""

    transcriber: Transcriber
    clips: list[ParityClip]
    max_tokens: int | None
    """Maximum length of the greedy texts, in tokens; None for the model's own limit."""
    normalize: Normalize

    @classmethod
    def measure(
        cls, transcriber: Transcriber, recordings: Sequence[Recording], max_tokens: int | None, normalize: Normalize
    ) -> "TorchReference":
        """Run PyTorch on the recordings."""
        clips = []
        for audio, transcript in track(recordings, "parity torch", unit="clip"):
            mel_BFT = transcriber.features([read_audio(audio)])
            (greedy,) = transcriber.decode(mel_BFT, max_tokens=max_tokens)
            encoder_BSD, logits = forced_decoding(
                transcriber.runtime, mel_BFT, transcriber.format.prompt, greedy.tokens
            )
            truth = normalize(transcript) if transcript else None
            clips.append(ParityClip(mel_BFT, encoder_BSD, logits, greedy.tokens, normalize(greedy.text), truth))
        return cls(transcriber, clips, max_tokens, normalize)


def forced_decoding(
    runtime: Runtime, mel_BFT: np.ndarray, prompt: list[int], tokens: list[int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the encoder states, and the logits under teacher forcing along `prompt` and `tokens`.

    So every decoding step with a cache is compared, and a tie between two tokens does not send the runtimes different
    ways.
    """
    state = runtime.encode(mel_BFT)
    encoder_BSD = np.array(state.encoder_BSD, np.float32)
    if isinstance(runtime, Generator):
        return encoder_BSD, runtime.forced_logits(state, prompt, tokens)
    logits_BV, state = runtime.step(np.array([prompt], np.int64), state)
    logits = [logits_BV.copy()]
    for token in tokens[:-1]:
        logits_BV, state = runtime.step(np.array([[token]], np.int64), state)
        logits.append(logits_BV.copy())
    return encoder_BSD, logits


@dataclass(frozen=True)
class ArrayError:
    """Difference between expected and computed arrays."""

    max_abs: float
    """Largest absolute error."""
    mean_abs: float
    """Mean absolute error."""
    psnr_db: float
    """20 log10(largest expected value / root mean square error), dB."""


class RunningError:
    """Accumulates the difference between expected and computed arrays."""

    def __init__(self) -> None:
        self._largest = self._peak = self._absolute = self._square = 0.0
        self._count = 0

    def add(self, expected: np.ndarray, computed: np.ndarray) -> None:
        """Add a pair of arrays of the same shape."""
        error = np.abs(expected.astype(np.float64) - computed)
        self._largest = max(self._largest, float(error.max()))
        self._peak = max(self._peak, float(np.abs(expected).max()))
        self._absolute += float(error.sum())
        self._square += float((error**2).sum())
        self._count += error.size

    def result(self) -> ArrayError:
        """Return the error over all pairs so far; the PSNR of equal arrays is given as 300 dB."""
        rmse = (self._square / self._count) ** 0.5
        psnr = 20 * float(np.log10(self._peak / rmse)) if rmse > 0 else 300.0
        return ArrayError(self._largest, self._absolute / self._count, psnr)


@dataclass(frozen=True)
class ParityFigures:
    """How far an artefact is from PyTorch over all clips."""

    encoder: ArrayError
    """Of the encoder states."""
    logits: ArrayError
    """Of the logits along PyTorch's greedy text."""
    equal_text: float
    """Fraction of clips with the same greedy tokens."""
    wer_increase: Interval | None
    """WER minus PyTorch's, percentage points, on the clips with a transcript; None if no clip has one."""

    @property
    def min_psnr_db(self) -> float:
        """The smaller PSNR of encoder states and logits."""
        return min(self.encoder.psnr_db, self.logits.psnr_db)


def compare_with_torch(reference: TorchReference, runtime: Runtime, name: str) -> ParityFigures:
    """Run an artefact on the reference's clips and compare it with PyTorch. `name` is shown with the progress."""
    encoder, logits, equal, texts = RunningError(), RunningError(), 0, list[str]()
    prompt = reference.transcriber.format.prompt
    transcriber = Transcriber.with_runtime(reference.transcriber, runtime)
    for clip in track(reference.clips, f"parity {name}", unit="clip"):
        encoder_BSD, steps = forced_decoding(runtime, clip.mel_BFT, prompt, clip.tokens)
        encoder.add(clip.encoder_BSD, encoder_BSD)
        for expected_BV, computed_BV in zip(clip.logits, steps, strict=True):
            logits.add(expected_BV, computed_BV)
        (greedy,) = transcriber.decode(clip.mel_BFT, max_tokens=reference.max_tokens)
        equal += greedy.tokens == clip.tokens
        texts.append(reference.normalize(greedy.text))
    return ParityFigures(
        encoder.result(), logits.result(), equal / len(reference.clips), _wer_increase(reference.clips, texts)
    )


def _wer_increase(clips: Sequence[ParityClip], texts: Sequence[str]) -> Interval | None:
    """Return the WER of `texts` minus that of PyTorch's texts, with its 95 % interval."""
    rows = [(clip.truth, clip.text, text) for clip, text in zip(clips, texts, strict=True) if clip.truth]
    if not rows:
        return None
    truths, torch_texts, own_texts = (list(column) for column in zip(*rows, strict=True))
    return bootstrap(count_errors(truths, own_texts), count_errors(truths, torch_texts), resamples=1000, seed=0)
