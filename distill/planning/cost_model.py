"""Cost model: predict a student's latency, file size and peak memory from its shape.

Each part of the cost is a sum of terms, and each term is proportional to the work that the shape asks for:

    encoder time      = fixed + convolutions + linear layers + attention (grows with the square of the window)
    prompt time       = fixed + decoder layers + keys and values of the cross-attention + output head
    time per token    = fixed + decoder layers + cross-attention + output head
    mel time          = fixed + positions
    size              = fixed + weights of the encoder layers, the decoder layers, the embedding and the positions
    peak memory       = fixed + all weights + positions + attention scores + cache of the cross-attention

The coefficients of a part are fitted to the shapes that were measured on this machine: least squares of the relative
errors, with no coefficient below zero (Lawson and Hanson 1974, chapter 23), since more work never saves time or memory.
A model holds for one teacher width, one runtime and one precision.

Axes: N measured shapes, T terms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.optimize import nnls

from recipes.core.whisper_shape import WhisperShape

TERMS = {
    "mel_ms": ("fixed", "positions"),
    "encoder_ms": ("fixed", "convolutions", "linear", "attention"),
    "prompt_ms": ("fixed", "layers", "keys", "head"),
    "token_ms": ("fixed", "layers", "cross", "head"),
    "size_mb": ("fixed", "encoder_weights", "decoder_weights", "embedding", "positions"),
    "peak_rss_mb": ("fixed", "weights", "positions", "scores", "cross"),
}
"""The terms of each part of the cost, by field of `CostFigures`. `cost_terms` computes them."""

TIMES = ("mel_ms", "encoder_ms", "prompt_ms", "token_ms", "clip_p50_ms", "clip_p95_ms", "rtf")
"""The fields of `CostFigures` that change with the speed of the machine."""

LIMITED = ("clip_p95_ms", "rtf", "peak_rss_mb", "size_mb")
"""The fields of `CostFigures` that a device budget limits."""


@dataclass(frozen=True)
class CostFigures:
    """What one shape costs in one artefact, measured or predicted. Times are for the plan's clip, in milliseconds."""

    mel_ms: float
    """Time of the log-mel spectrogram."""
    encoder_ms: float
    """Time of the encoder."""
    prompt_ms: float
    """Time of the decoder's first pass, which reads the prompt and yields the first token."""
    token_ms: float
    """Time of each further token, choosing it among the logits included."""
    clip_p50_ms: float
    """Median time of the whole clip."""
    clip_p95_ms: float
    """95th percentile of the time of the whole clip."""
    rtf: float
    """Real-time factor: processing time divided by audio duration."""
    peak_rss_mb: float
    """Peak resident memory of the process, 10^6 bytes."""
    size_mb: float
    """Size of the weight files, 10^6 bytes."""


@dataclass(frozen=True)
class PredictionErrors:
    """Relative error of the figures that a budget limits: 0.1 is 10 %. All zero for figures that were measured."""

    clip_p95_ms: float = 0.0
    rtf: float = 0.0
    peak_rss_mb: float = 0.0
    size_mb: float = 0.0


@dataclass(frozen=True)
class MeasuredShape:
    """A shape with its measured figures."""

    shape: WhisperShape
    figures: CostFigures


def cost_terms(shape: WhisperShape) -> dict[str, float]:
    """Compute every term of a shape: work in 10^9 multiply-adds, weights and states in 10^6 numbers."""
    width, positions, (encoder_ffn, decoder_ffn) = shape.width, shape.source_positions, shape.ffn_widths
    encoder, decoder = shape.encoder_layers, shape.decoder_layers
    one_layer, two_layers = shape.cut(1, 1), shape.cut(2, 2)
    weights = {
        "encoder_weights": encoder * (two_layers.encoder_parameters - one_layer.encoder_parameters) / 1e6,
        "decoder_weights": decoder * (two_layers.decoder_parameters - one_layer.decoder_parameters) / 1e6,
        "embedding": shape.vocabulary * width / 1e6,
    }
    return {
        "fixed": 1.0,
        "positions": positions * width / 1e6,
        "convolutions": 3 * positions * width * (2 * shape.mel_bins + width) / 1e9,
        "linear": encoder * positions * (4 * width**2 + 2 * width * encoder_ffn) / 1e9,
        "attention": encoder * 2 * positions**2 * width / 1e9,
        "scores": shape.heads * positions**2 / 1e6,
        "layers": decoder * (6 * width**2 + 2 * width * decoder_ffn) / 1e9,
        "cross": decoder * 2 * positions * width / 1e9,
        "keys": decoder * 2 * positions * width**2 / 1e9,
        "head": shape.vocabulary * width / 1e9,
        "weights": sum(weights.values()),
        **weights,
    }


def fit_nonnegative(terms_NT: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """Return the coefficients [T] >= 0 of `terms_NT` that minimise the sum of squared relative errors of `values_N`."""
    rows_NT = terms_NT / values_N[:, None]
    scale_T = np.linalg.norm(rows_NT, axis=0)  # the terms differ by many powers of ten
    scale_T = np.where(scale_T > 0, scale_T, 1)
    coefficients_T: np.ndarray = nnls(rows_NT / scale_T, np.ones(len(values_N)))[0] / scale_T
    return coefficients_T


@dataclass(frozen=True)
class CostModel:
    """Coefficients fitted to the measured shapes of one artefact."""

    coefficients: Mapping[str, np.ndarray]
    """For each part of the cost its coefficients [T], in the order of `TERMS`."""
    tokens: int
    """Number of tokens that are decoded for a clip."""
    p95_over_p50: float
    """95th percentile of a clip's time divided by its median."""
    rtf_per_ms: float
    """Real-time factor divided by a clip's median time in milliseconds."""

    @classmethod
    def fit(cls, measured: Sequence[MeasuredShape], tokens: int) -> Self:
        """Fit every part of the cost to the measured shapes. `tokens` is the number of tokens decoded for a clip."""
        terms = [cost_terms(point.shape) for point in measured]
        coefficients = {
            part: fit_nonnegative(
                np.array([[row[name] for name in names] for row in terms]),
                np.array([getattr(point.figures, part) for point in measured]),
            )
            for part, names in TERMS.items()
        }
        return cls(
            coefficients, tokens,
            float(np.median([point.figures.clip_p95_ms / point.figures.clip_p50_ms for point in measured])),
            float(np.median([point.figures.rtf / point.figures.clip_p50_ms for point in measured])),
        )  # fmt: skip

    def predict(self, shape: WhisperShape) -> CostFigures:
        """Predict every figure of a shape."""
        terms = cost_terms(shape)
        parts = {
            part: float(self.coefficients[part] @ [terms[name] for name in names]) for part, names in TERMS.items()
        }
        # The first token comes with the prompt.
        clip = parts["mel_ms"] + parts["encoder_ms"] + parts["prompt_ms"] + (self.tokens - 1) * parts["token_ms"]
        return CostFigures(
            **parts, clip_p50_ms=clip, clip_p95_ms=clip * self.p95_over_p50, rtf=clip * self.rtf_per_ms
        )  # fmt: skip


@dataclass(frozen=True)
class FittedCosts:
    """The cost model of one artefact, and how far its predictions are off."""

    model: CostModel
    errors: PredictionErrors

    @classmethod
    def fit(cls, measured: Sequence[MeasuredShape], tokens: int) -> Self:
        """Fit the model to all measured shapes and estimate its errors by leaving one shape out at a time."""
        return cls(CostModel.fit(measured, tokens), leave_one_out_errors(measured, tokens))


def leave_one_out_errors(measured: Sequence[MeasuredShape], tokens: int) -> PredictionErrors:
    """Return the root mean square of the relative errors with which each shape is predicted from the other shapes."""
    if len(measured) == 1:  # the space has a single shape: there is nothing left to fit, and nothing to predict
        return PredictionErrors()
    squares: dict[str, list[float]] = {key: [] for key in LIMITED}
    for index, point in enumerate(measured):
        predicted = CostModel.fit([*measured[:index], *measured[index + 1 :]], tokens).predict(point.shape)
        for key in LIMITED:
            squares[key].append((getattr(predicted, key) / getattr(point.figures, key) - 1) ** 2)
    return PredictionErrors(**{key: float(np.sqrt(np.mean(values))) for key, values in squares.items()})
