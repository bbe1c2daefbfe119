"""What a student's shape costs on this machine: sums of terms in proportion to its work, fitted to measured shapes.

    time of the encoder    = fixed + convolutions + linear layers + attention, which grows with the window's square
    time of the prompt     = fixed + decoder layers + keys and values of the cross-attention + head
    time of a token        = fixed + decoder layers + cross-attention + head
    size                   = fixed + weights of encoder layers, decoder layers, embedding, positions
    peak memory            = fixed + all weights + positions + attention's scores + the cross-attention's cache

Each part is fitted by least squares of relative errors with no negative coefficient (Lawson and Hanson 1974, ch. 23):
nothing gives time or memory back. All is for one teacher's width, one runtime, one precision.

N points, T terms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from recipes.core.whisper_shape import WhisperShape

Figures = Mapping[str, float]
Point = tuple[WhisperShape, Figures]
"""A measured shape."""

TERMS = {
    "mel_ms": ("fixed", "positions"),
    "encoder_ms": ("fixed", "convolutions", "linear", "attention"),
    "prompt_ms": ("fixed", "layers", "keys", "head"),
    "token_ms": ("fixed", "layers", "cross", "head"),
    "size_mb": ("fixed", "encoder_weights", "decoder_weights", "embedding", "positions"),
    "peak_rss_mb": ("fixed", "weights", "positions", "scores", "cross"),
}
"""Of each part of the cost."""

TIMES = ("mel_ms", "encoder_ms", "prompt_ms", "token_ms", "clip_p50_ms", "clip_p95_ms", "rtf")
"""Figures that change with the machine's speed."""

LIMITED = ("clip_p95_ms", "rtf", "peak_rss_mb", "size_mb")
"""What a budget limits of it."""


def cost_terms(shape: WhisperShape) -> dict[str, float]:
    """Work in 10^9 multiply-adds, weights and states in 10^6 numbers."""
    width, positions, (encoder_ffn, ffn) = shape.width, shape.source_positions, shape.neurons
    encoder, decoder = shape.encoder_layers, shape.decoder_layers
    one = shape.cut(1, 1)
    deeper = shape.cut(2, 2)
    weights = {
        "encoder_weights": encoder * (deeper.encoder_parameters - one.encoder_parameters) / 1e6,
        "decoder_weights": decoder * (deeper.decoder_parameters - one.decoder_parameters) / 1e6,
        "embedding": shape.vocabulary * width / 1e6,
    }
    return {
        "fixed": 1.0,
        "positions": positions * width / 1e6,
        "convolutions": 3 * positions * width * (2 * shape.mel_bins + width) / 1e9,
        "linear": encoder * positions * (4 * width**2 + 2 * width * encoder_ffn) / 1e9,
        "attention": encoder * 2 * positions**2 * width / 1e9,
        "scores": shape.heads * positions**2 / 1e6,
        "layers": decoder * (6 * width**2 + 2 * width * ffn) / 1e9,
        "cross": decoder * 2 * positions * width / 1e9,
        "keys": decoder * 2 * positions * width**2 / 1e9,
        "head": shape.vocabulary * width / 1e9,
        "weights": sum(weights.values()),
        **weights,
    }


def nonnegative(features_NT: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """Coefficients [T], none negative, with the least sum of squared relative errors."""
    rows_NT = features_NT / values_N[:, None]
    scale_T = np.linalg.norm(rows_NT, axis=0)  # terms differ by many powers of ten
    scale_T = np.where(scale_T > 0, scale_T, 1)
    found_T: np.ndarray = nnls(rows_NT / scale_T, np.ones(len(values_N)))[0] / scale_T
    return found_T


@dataclass(frozen=True)
class CostModel:
    """A fitted model."""

    coefficients: Mapping[str, np.ndarray]
    """[T] by part."""
    tokens: int
    """Of a clip."""
    p95: float
    """A clip's 95th percentile over its median."""
    rtf: float
    """Real-time factor over a clip's median in ms."""

    @classmethod
    def fit(cls, points: Sequence[Point], tokens: int) -> "CostModel":
        """To the measured parts `mel_ms`, `encoder_ms`, ..., and `clip_p50_ms`, `clip_p95_ms`, `rtf` of each shape."""
        known = [cost_terms(shape) for shape, _ in points]
        coefficients = {
            part: nonnegative(
                np.array([[each[name] for name in names] for each in known]),
                np.array([figures[part] for _, figures in points]),
            )
            for part, names in TERMS.items()
        }
        p95, rtf = (
            float(np.median([figures[key] / figures["clip_p50_ms"] for _, figures in points]))
            for key in ("clip_p95_ms", "rtf")
        )
        return cls(coefficients, tokens, p95, rtf)

    def predict(self, shape: WhisperShape) -> dict[str, float]:
        """The parts and what a budget limits."""
        known = cost_terms(shape)
        found = {
            part: float(self.coefficients[part] @ [known[name] for name in names]) for part, names in TERMS.items()
        }
        clip = clip_ms(found, self.tokens)
        return found | {"clip_p50_ms": clip, "clip_p95_ms": clip * self.p95, "rtf": clip * self.rtf}


def clip_ms(parts: Figures, tokens: int) -> float:
    """A clip's time: the first token comes with the prompt."""
    return parts["mel_ms"] + parts["encoder_ms"] + parts["prompt_ms"] + (tokens - 1) * parts["token_ms"]


def leave_one_out_errors(points: Sequence[Point], tokens: int) -> dict[str, float]:
    """Root mean square of the relative error of each limited figure, of fits that have not seen the point."""
    if len(points) == 1:  # nothing else to fit, and nothing else to predict
        return dict.fromkeys(LIMITED, 0.0)
    squares: dict[str, list[float]] = {key: [] for key in LIMITED}
    for index, (shape, figures) in enumerate(points):
        said = CostModel.fit([*points[:index], *points[index + 1 :]], tokens).predict(shape)
        for key in LIMITED:
            squares[key].append((said[key] / figures[key] - 1) ** 2)
    return {key: float(np.sqrt(np.mean(values))) for key, values in squares.items()}
