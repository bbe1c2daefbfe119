"""Word times of a transcript, read from the decoder's cross-attention (openai/whisper, timing.py).

A decoder that is about to write a token listens to where it is said, and some of its heads do so reliably. Their
weights along the known text, normalised over its tokens and freed from single peaks by a median, make a picture of the
text over time; the cheapest path through it gives each token its first position. A path leaves no gaps: pauses are
taken out of words by loudness.

H heads, L tokens read, N tokens of text and the end of text after them, S encoder positions of the clip.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from scipy.ndimage import median_filter
from tokenizers import Tokenizer
from transformers import WhisperForConditionalGeneration

from eval.audio.recordings import SAMPLE_RATE
from eval.decoding.long_form import words_or_characters
from eval.decoding.transcriber import Transcriber
from eval.runtimes.log_mel import HOP
from eval.runtimes.model_format import JsonSettings
from eval.runtimes.torch_runtime import TorchRuntime
from recipes.core.errors import UserError
from recipes.core.whisper_shape import POSITIONS_PER_SECOND

Head = tuple[int, int]
"""Decoder layer and head of its cross-attention."""
SOUND_DB = -30.0
"""Of the loudest 10 ms: a word begins and ends, within its time on the path, where it is first and last as loud."""


@dataclass(frozen=True)
class TimedWord:
    """A word, with the punctuation that is written to it."""

    word: str
    start: float
    """s."""
    end: float


@dataclass(frozen=True)
class WordTimer:
    """A model in PyTorch and the heads that its word times are read from."""

    transcriber: Transcriber
    model: WhisperForConditionalGeneration
    heads: Sequence[Head]

    @classmethod
    def of(cls, transcriber: Transcriber, folder: Path) -> Self:
        """By the folder's `alignment_heads`; UserError for another runtime, and for a folder without any."""
        if not isinstance(transcriber.runtime, TorchRuntime):
            raise UserError("word times: need attention weights, which --runtime torch alone gives; take it")
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
                f"heads, found {heads}; choose them anew with `python -m distill.alignment_heads RECIPE {folder}`"
            )
        return cls(transcriber, model, [(layer, head) for layer, head in heads])

    def words(self, samples: np.ndarray, tokens: Sequence[int], offset: float = 0.0) -> list[TimedWord]:
        """Words and times of a clip [N] at 16 kHz of at most a window, whose text has these tokens.

        Times count from `offset` seconds before the clip.
        """
        form = self.transcriber.format
        text = [token for token in tokens if token < form.end][: form.max_length - len(form.prompt)]
        if not (groups := split_words(self.transcriber.tokenizer, text)):
            return []
        attention_HNS = read_attention(self.transcriber, self.model, samples, text, self.heads)
        pictures_HNS = smooth_attention(attention_HNS, self.model.config.median_filter_width)
        begin_N = token_starts(pictures_HNS.mean(axis=0, keepdims=True))[0] / POSITIONS_PER_SECOND
        found = []
        for word, first, stop in groups:
            start, end = trim_silence(samples, float(begin_N[first]), float(begin_N[stop]))
            found.append(TimedWord(word, round(offset + start, 2), round(offset + end, 2)))
        return found


def trim_silence(samples: np.ndarray, start: float, end: float) -> tuple[float, float]:
    """A word's time in s without the pauses that the path gives it: a word's end is where the next token is written."""
    last = len(samples) / SAMPLE_RATE
    start, end = min(start, last), min(end, last)
    inside = samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
    first, stop = loud_range(inside) if len(inside) else (0.0, 0.0)
    return start + first, min(start + stop, last)


def loud_range(samples: np.ndarray) -> tuple[float, float]:
    """Where samples [N] at 16 kHz are first and last loud, in s, to 10 ms: see SOUND_DB."""
    frames_TN = np.resize(samples, (max(1, len(samples) // HOP), HOP))
    power_T = np.square(frames_TN, dtype=np.float64).mean(axis=1)
    loud = np.flatnonzero(power_T >= power_T.max() * 10 ** (SOUND_DB / 10))
    return int(loud[0]) * HOP / SAMPLE_RATE, (int(loud[-1]) + 1) * HOP / SAMPLE_RATE


@torch.inference_mode()
def read_attention(
    transcriber: Transcriber, model: WhisperForConditionalGeneration, samples: np.ndarray, text: Sequence[int],
    heads: Sequence[Head],
) -> np.ndarray:  # fmt: skip
    """Softmax over the clip's own positions [H, N, S] of each head while it writes the text and its end."""
    form = transcriber.format
    mel_1FT = torch.from_numpy(transcriber.features([samples])).to(model.device, model.dtype)
    read_1L = torch.tensor([[*form.prompt, *text]], device=model.device)
    states_1SD = model.model.encoder(mel_1FT).last_hidden_state
    with _eager(model):
        layers = model.model.decoder(
            input_ids=read_1L, encoder_hidden_states=states_1SD, output_attentions=True, use_cache=False
        ).cross_attentions
    sounding = max(1, min(states_1SD.shape[1], -(-len(samples) // (2 * HOP))))
    weights_HLS = torch.stack([layers[layer][0, head, :, :sounding] for layer, head in heads]).float()
    # What a head gives the padding is left out of its softmax, as if there were none.
    weights_HLS = weights_HLS / weights_HLS.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return weights_HLS[:, len(form.prompt) - 1 :].cpu().numpy()


@contextmanager
def _eager(model: WhisperForConditionalGeneration) -> Iterator[None]:
    """Attention that hands out its weights; fused kernels never hold them."""
    kept = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(kept)


def smooth_attention(attention_HNS: np.ndarray, width: int) -> np.ndarray:
    """Each position in standard deviations from its mean over the tokens, and the median over `width` positions."""
    spread_H1S = attention_HNS.std(axis=-2, keepdims=True)
    normal_HNS = (attention_HNS - attention_HNS.mean(axis=-2, keepdims=True)) / np.maximum(spread_H1S, 1e-12)
    found: np.ndarray = median_filter(normal_HNS, size=(1, 1, width), mode="mirror")
    return found


def token_starts(gain_HNS: np.ndarray) -> np.ndarray:
    """First position [H, N] of each token on each picture's path of the largest sum; never falling, 0 for the first.

    The path goes from the first token and position to the last of both; each step takes the next token, the next
    position, or both (dynamic time warping). Of equals it takes the position. Cells of one anti-diagonal depend on the
    two before it alone, and are done at once.
    """
    pictures, tokens, positions = gain_HNS.shape
    # Tokens and positions count from 1; before both stands the one cell where every path begins.
    best_DHN = np.full((tokens + positions + 1, pictures, tokens + 1), -np.inf)
    gain_DHN = np.full_like(best_DHN, -np.inf)
    token_N1, position_S = np.arange(1, tokens + 1)[:, None], np.arange(1, positions + 1)
    gain_DHN[token_N1 + position_S, :, token_N1] = gain_HNS.transpose(1, 2, 0)
    best_DHN[0, :, 0] = 0.0
    for diagonal in range(2, tokens + positions + 1):
        last_HN, second_HN = best_DHN[diagonal - 1], best_DHN[diagonal - 2]
        before_HN = np.maximum(last_HN[:, 1:], np.maximum(last_HN[:, :-1], second_HN[:, :-1]))
        best_DHN[diagonal, :, 1:] = gain_DHN[diagonal, :, 1:] + before_HN
    return np.stack([_first_positions(best_DHN[:, picture]) for picture in range(pictures)])


def _first_positions(best_DN: np.ndarray) -> np.ndarray:
    """Back along the best path: its first position in each token's row [N]."""
    diagonal, token = best_DN.shape[0] - 1, best_DN.shape[1] - 1
    starts_N = np.zeros(token, np.int64)
    while token > 1:
        position, other = best_DN[diagonal - 1, token], best_DN[diagonal - 1, token - 1]
        both = best_DN[diagonal - 2, token - 1]
        if position >= max(other, both):
            diagonal -= 1
            continue
        starts_N[token - 1] = diagonal - token - 1
        diagonal -= 2 if both >= other else 1
        token -= 1
    return starts_N


def split_words(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[tuple[str, int, int]]:
    """Words parted by spaces, each with its first token and the one after its last; a token of a space is in none.

    In scripts without spaces a character is a word, or all characters of a token. Punctuation that stands alone is
    written to the word before it, or to the first one.
    """
    text = tokenizer.decode(tokens)
    ends = [len(tokenizer.decode(tokens[: count + 1])) for count in range(len(tokens))]
    groups: list[tuple[int, int, int]] = []
    end = 0
    for unit in words_or_characters(text):
        begin = text.index(unit.strip(), end)
        end = begin + len(unit.strip())
        first = bisect_right(ends, begin)
        stop = max(bisect_right(ends, end), first + 1)
        if groups and (first < groups[-1][2] or _marks(unit) or _marks(text[groups[-1][0] : begin])):
            begin, first, _ = groups.pop()
        groups.append((begin, first, stop))
    begins = [*(begin for begin, _, _ in groups), len(text)]
    return [
        (text[begin:after].strip(), first, stop) for (begin, first, stop), after in zip(groups, begins[1:], strict=True)
    ]


def _marks(text: str) -> bool:
    return all(unicodedata.category(character).startswith("P") for character in text.strip())
