"""Word times of a transcript, read from the decoder's cross-attention (openai/whisper, timing.py).

Some of the decoder's heads attend, while a token is being predicted, to the audio in which it is spoken. For a known
text, the weights of these heads are normalized over its tokens and smoothed by a median filter over time, which gives a
score for every pair of token and encoder position. The path with the highest sum of scores assigns each token its first
position. A path has no gaps, so pauses are attributed to words; they are removed from a word's time by loudness.

H heads, T audio frames, L tokens read, N tokens of text including the end of text, S encoder positions of the clip,
D anti-diagonals of the token-position grid.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from scipy.ndimage import median_filter
from tokenizers import Tokenizer
from transformers import WhisperForConditionalGeneration

from eval.audio.recordings import SAMPLE_RATE
from eval.decoding.long_form import words_or_characters
from eval.decoding.timestamps import TimedWord
from eval.decoding.transcriber import Transcriber
from eval.runtimes.log_mel import HOP
from eval.runtimes.model_format import JsonSettings
from eval.runtimes.torch_runtime import TorchRuntime
from recipes.core.errors import UserError
from recipes.core.whisper_shape import POSITIONS_PER_SECOND

Head = tuple[int, int]
"""A cross-attention head: decoder layer, and index of the head in it."""
LOUDNESS_THRESHOLD_DB = -30.0
"""Relative to the loudest 10 ms of a word's time on the path: the word starts and ends where it is first and last at
least this loud."""


class WordSpan(NamedTuple):
    """A word and the tokens that it consists of."""

    word: str
    first: int
    """Index of its first token."""
    stop: int
    """Index after its last token."""


@dataclass(frozen=True)
class WordTimer:
    """Reads word times from a PyTorch model with the attention heads `heads`; create it with `from_folder`."""

    transcriber: Transcriber
    model: WhisperForConditionalGeneration
    heads: Sequence[Head]

    @classmethod
    def from_folder(cls, transcriber: Transcriber, folder: Path) -> Self:
        """Use the heads that `alignment_heads` in the model folder's generation_config.json lists.

        Raises UserError if the transcriber's runtime is not PyTorch, or the list is missing or out of range.
        """
        if not isinstance(transcriber.runtime, TorchRuntime):
            raise UserError("word times: need attention weights, which only --runtime torch gives; take it")
        model = transcriber.runtime.model
        heads = JsonSettings.read(folder / "generation_config.json").get("alignment_heads")
        if not heads:
            raise UserError(
                f"{folder}/generation_config.json: expected alignment_heads for word times, found none; write them "
                f"with `python -m distill.alignment_heads RECIPE {folder}`, or set export.alignment_clips"
            )
        layers, count = model.config.decoder_layers, model.config.decoder_attention_heads
        if not all(layer < layers and head < count for layer, head in heads):
            raise UserError(
                f"{folder}/generation_config.json: expected alignment_heads within {layers} decoder layers of {count} "
                f"heads, found {heads}; choose them again with `python -m distill.alignment_heads RECIPE {folder}`"
            )
        return cls(transcriber, model, [(layer, head) for layer, head in heads])

    def words(self, samples: np.ndarray, tokens: Sequence[int], offset: float = 0.0) -> list[TimedWord]:
        """Return the words of a clip with their times in seconds, to 10 ms.

        Args:
            samples: Samples [N] at 16 kHz, at most one window.
            tokens: The tokens of the clip's transcript.
            offset: Time of the clip's start, which is added to all times.
        """
        form = self.transcriber.format
        text = [token for token in tokens if token < form.end][: form.max_length - len(form.prompt)]
        if not (spans := split_words(self.transcriber.tokenizer, text)):
            return []
        attention_HNS = cross_attention(self.transcriber, self.model, samples, text, self.heads)
        score_HNS = smooth_attention(attention_HNS, self.model.config.median_filter_width)
        start_N = token_starts(score_HNS.mean(axis=0, keepdims=True))[0] / POSITIONS_PER_SECOND
        words = []
        for word, first, stop in spans:
            start, end = trim_silence(samples, float(start_N[first]), float(start_N[stop]))
            words.append(TimedWord(word, round(offset + start, 2), round(offset + end, 2)))
        return words


def trim_silence(samples: np.ndarray, start: float, end: float) -> tuple[float, float]:
    """Return a word's start and end in seconds without the pauses that the path attributes to it.

    On the path a word ends only where the next one starts. `samples` [N] at 16 kHz are those of the whole clip.
    """
    last = len(samples) / SAMPLE_RATE
    start, end = min(start, last), min(end, last)
    word_samples = samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
    first, stop = loud_range(word_samples) if len(word_samples) else (0.0, 0.0)
    return start + first, min(start + stop, last)


def loud_range(samples: np.ndarray) -> tuple[float, float]:
    """Return where samples [N] at 16 kHz are first and last loud, in seconds, to 10 ms; see LOUDNESS_THRESHOLD_DB."""
    frames_TN = np.resize(samples, (max(1, len(samples) // HOP), HOP))
    power_T = np.square(frames_TN, dtype=np.float64).mean(axis=1)
    loud = np.flatnonzero(power_T >= power_T.max() * 10 ** (LOUDNESS_THRESHOLD_DB / 10))
    return int(loud[0]) * HOP / SAMPLE_RATE, (int(loud[-1]) + 1) * HOP / SAMPLE_RATE


@torch.inference_mode()
def cross_attention(
    transcriber: Transcriber, model: WhisperForConditionalGeneration, samples: np.ndarray, text: Sequence[int],
    heads: Sequence[Head],
) -> np.ndarray:  # fmt: skip
    """Return the attention weights [H, N, S] with which the heads predict the text's tokens and its end.

    Each row is a softmax over the clip's own positions: those of the padding are left out. `samples` [N] are at 16 kHz.
    """
    form = transcriber.format
    mel_1FT = torch.from_numpy(transcriber.features([samples])).to(model.device, model.dtype)
    input_1L = torch.tensor([[*form.prompt, *text]], device=model.device)
    states_1SD = model.model.encoder(mel_1FT).last_hidden_state
    with _eager_attention(model):
        layers = model.model.decoder(
            input_ids=input_1L, encoder_hidden_states=states_1SD, output_attentions=True, use_cache=False
        ).cross_attentions
    positions = max(1, min(states_1SD.shape[1], -(-len(samples) // (2 * HOP))))
    weights_HLS = torch.stack([layers[layer][0, head, :, :positions] for layer, head in heads]).float()
    # Renormalizing the remaining weights gives the softmax without the padding.
    weights_HLS = weights_HLS / weights_HLS.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return weights_HLS[:, len(form.prompt) - 1 :].cpu().numpy()


@contextmanager
def _eager_attention(model: WhisperForConditionalGeneration) -> Iterator[None]:
    """Use the attention implementation that returns its weights while the body runs; fused kernels never hold them."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)


def smooth_attention(attention_HNS: np.ndarray, width: int) -> np.ndarray:
    """Standardize the weights of each position over the tokens, then take the median over `width` positions."""
    deviation_H1S = attention_HNS.std(axis=-2, keepdims=True)
    standard_HNS = (attention_HNS - attention_HNS.mean(axis=-2, keepdims=True)) / np.maximum(deviation_H1S, 1e-12)
    smoothed: np.ndarray = median_filter(standard_HNS, size=(1, 1, width), mode="mirror")
    return smoothed


def token_starts(score_HNS: np.ndarray) -> np.ndarray:
    """Return each token's first position [H, N] on the path with the largest sum of scores, separately for each H.

    A path goes from the first token and position to the last ones; each step advances the token, the position, or both
    (dynamic time warping). Among equals, advancing the position wins. Starts never decrease; the first token's is 0.
    The cells of an anti-diagonal depend only on the two before it, so they are computed together.
    """
    heads, tokens, positions = score_HNS.shape
    # Tokens and positions are counted from 1; every path begins in the one additional cell (0, 0).
    best_DHN = np.full((tokens + positions + 1, heads, tokens + 1), -np.inf)
    score_DHN = np.full_like(best_DHN, -np.inf)
    token_N1, position_S = np.arange(1, tokens + 1)[:, None], np.arange(1, positions + 1)
    score_DHN[token_N1 + position_S, :, token_N1] = score_HNS.transpose(1, 2, 0)
    best_DHN[0, :, 0] = 0.0
    for diagonal in range(2, tokens + positions + 1):
        last_HN, second_last_HN = best_DHN[diagonal - 1], best_DHN[diagonal - 2]
        before_HN = np.maximum(last_HN[:, 1:], np.maximum(last_HN[:, :-1], second_last_HN[:, :-1]))
        best_DHN[diagonal, :, 1:] = score_DHN[diagonal, :, 1:] + before_HN
    return np.stack([_trace_back(best_DHN[:, head]) for head in range(heads)])


def _trace_back(best_DN: np.ndarray) -> np.ndarray:
    """Follow the best path back from its end; return its first position for each token [N]."""
    diagonal, token = best_DN.shape[0] - 1, best_DN.shape[1] - 1
    start_N = np.zeros(token, np.int64)
    while token > 1:
        by_position, by_token = best_DN[diagonal - 1, token], best_DN[diagonal - 1, token - 1]
        by_both = best_DN[diagonal - 2, token - 1]
        if by_position >= max(by_token, by_both):
            diagonal -= 1
            continue
        start_N[token - 1] = diagonal - token - 1
        diagonal -= 2 if by_both >= by_token else 1
        token -= 1
    return start_N


def split_words(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[WordSpan]:
    """Split tokens into words at spaces. A token that is only a space belongs to no word.

    In scripts without spaces each character is a word, or all characters of a token together. Punctuation between
    spaces belongs to the word before it, or to the first word.
    """
    text = tokenizer.decode(tokens)
    token_ends = [len(tokenizer.decode(tokens[: count + 1])) for count in range(len(tokens))]
    spans: list[tuple[int, int, int]] = []  # first character, first token, token after the last one
    end = 0
    for unit in words_or_characters(text):
        begin = text.index(unit.strip(), end)
        end = begin + len(unit.strip())
        first = bisect_right(token_ends, begin)
        stop = max(bisect_right(token_ends, end), first + 1)
        shares_token = bool(spans) and first < spans[-1][2]
        if spans and (shares_token or _is_punctuation(unit) or _is_punctuation(text[spans[-1][0] : begin])):
            begin, first, _ = spans.pop()
        spans.append((begin, first, stop))
    begins = [*(begin for begin, _, _ in spans), len(text)]
    return [
        WordSpan(text[begin:after].strip(), first, stop)
        for (begin, first, stop), after in zip(spans, begins[1:], strict=True)
    ]


def _is_punctuation(text: str) -> bool:
    return all(unicodedata.category(character).startswith("P") for character in text.strip())
