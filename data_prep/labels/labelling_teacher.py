"""The teacher on its device: batches of audio to text, scores and, where asked for, its distribution.

One encoder pass serves every decoding of a clip. Logits never leave the device whole: what is kept is chosen there.

B batch, N samples, S encoder positions, D width, L tokens, V vocabulary, K kept logits.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from data_prep.audio.torch_log_mel import LogMel
from data_prep.labels.label_store import Decoding, TokenDistribution
from eval.runtimes.model_format import ModelFormat, load_tokenizer, no_speech_token
from eval.runtimes.torch_runtime import load_teacher
from eval.scoring.error_rates import compression_ratio
from recipes.core.errors import UserError
from recipes.schema.labels_section import LabelsSection
from recipes.schema.teacher_section import TeacherSection as TeacherSection


@dataclass(frozen=True)
class TeacherOutput:
    """What the teacher made of one clip."""

    language: str | None
    plain: Decoding
    timed: Decoding | None
    no_speech_prob: float


@dataclass
class _Draft:
    """One clip while it is being decoded."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    kept: list[tuple[np.ndarray, np.ndarray, float]] = field(default_factory=list)


class LabellingTeacher:
    """A Whisper model that labels; greedy first, sampling where that is degenerate."""

    def __init__(self, folder: Path, teacher: TeacherSection, labels: LabelsSection, device: torch.device):
        self.model = load_teacher(folder, device, labels.precision, labels.quantize, labels.attention)
        self.device, self.labels, self.language = device, labels, teacher.language
        self.format = ModelFormat.load(folder, teacher.language, teacher.task)
        self.tokenizer = load_tokenizer(folder)
        self.log_mel = LogMel(self.format.mel_bins).to(device)
        self.no_speech = no_speech_token(self.tokenizer)
        if labels.timestamps and self.format.timestamp_begin >= self.model.config.vocab_size:
            raise UserError("labels.timestamps: expected a teacher with timestamp tokens, found none; set it to false")
        if labels.language == "detect" and not self.format.languages:
            raise UserError("labels.language: detect expects a multilingual teacher, found an English-only one")
        self.top_k = min(labels.top_k, self.model.config.vocab_size)

    @torch.inference_mode()
    def __call__(
        self, clips: Sequence[np.ndarray], names: Sequence[str], languages: Sequence[str | None]
    ) -> list[TeacherOutput]:
        """Clips of samples [N]; names seed the sampling, so that a label depends on its own utterance alone."""
        encoder_BSD = self.encode(clips)
        codes = self._languages(encoder_BSD, languages)
        prompt_BL = np.array([self.format.prompt_in(code) for code in codes])
        no_speech_B, plain = self._decode(encoder_BSD, prompt_BL, names, timestamps=False)
        timed: list[Decoding] | list[None] = [None] * len(clips)
        if self.labels.timestamps:
            _, timed = self._decode(encoder_BSD, prompt_BL[:, :-1], names, timestamps=True)
        return [TeacherOutput(*row) for row in zip(codes, plain, timed, no_speech_B, strict=True)]

    def encode(self, clips: Sequence[np.ndarray]) -> torch.Tensor:
        """Encoder states [B, S, D]."""
        samples_BN = np.zeros((len(clips), self.format.window_samples), np.float32)
        for row, clip in zip(samples_BN, clips, strict=True):
            row[: len(clip)] = clip
        mel_BFT = self.log_mel(torch.from_numpy(samples_BN).to(self.device)).to(self.model.dtype)
        return self.model.model.encoder(mel_BFT).last_hidden_state

    def _languages(self, encoder_BSD: torch.Tensor, given: Sequence[str | None]) -> list[str | None]:
        if not self.format.languages or self.labels.language == "teacher":
            return [self.language] * len(given)
        if self.labels.language == "column":
            codes = [code or self.language for code in given]
            if unknown := {code for code in codes if code not in self.format.languages}:
                raise UserError(f"labels.language: the corpus has languages the teacher does not know: {unknown}")
            return codes
        start_B1 = torch.full((len(given), 1), self.format.prompt[0], device=self.device)
        logits_BV = self._forward(start_B1, encoder_BSD, None)[0][:, 0]
        names, tokens = list(self.format.languages), list(self.format.languages.values())
        return [names[best] for best in logits_BV[:, tokens].argmax(dim=1).tolist()]

    def _decode(
        self, encoder_BSD: torch.Tensor, prompt_BL: np.ndarray, names: Sequence[str], *, timestamps: bool
    ) -> tuple[list[float], list[Decoding]]:
        """Greedy; then, for clips whose text is degenerate, rising temperatures until one is not."""
        no_speech_B, drafts = self._write(encoder_BSD, prompt_BL, timestamps=timestamps)
        done = [self._decoding(prompt, draft, 0.0) for prompt, draft in zip(prompt_BL, drafts, strict=True)]
        for temperature in self.labels.fallback:
            rows = [
                row for row, decoding in enumerate(done) if decoding.temperature == 0 and self._degenerate(decoding)
            ]
            if not rows:
                break
            noise = [_noise(names[row], temperature) for row in rows]
            _, drafts = self._write(
                encoder_BSD[rows], prompt_BL[rows], timestamps=timestamps, temperature=temperature, noise=noise
            )
            for row, draft in zip(rows, drafts, strict=True):
                if not self._degenerate(decoding := self._decoding(prompt_BL[row], draft, temperature)):
                    done[row] = decoding
        return no_speech_B, done

    def _degenerate(self, decoding: Decoding) -> bool:
        labels = self.labels
        return (
            compression_ratio(decoding.text) > labels.fallback_compression_ratio
            or decoding.mean_logprob < labels.fallback_logprob
            or not decoding.ended
        )

    def _write(
        self, encoder_BSD: torch.Tensor, prompt_BL: np.ndarray, *, timestamps: bool, temperature: float = 0.0,
        noise: Sequence[np.random.Generator] = (),
    ) -> tuple[list[float], list[_Draft]]:  # fmt: skip
        """Decode a batch to its end. Clips that have ended leave the batch once they are half of it."""
        batch, start = prompt_BL.shape
        drafts = [_Draft() for _ in range(batch)]
        rows = list(range(batch))
        rules = WhisperTimeStampLogitsProcessor(self.model.generation_config, start) if timestamps else None
        cache = self._cache(encoder_BSD)
        history_BL = tokens_BL = torch.from_numpy(prompt_BL).to(self.device)
        no_speech_B = [0.0] * batch
        for length in range(self.format.max_length - start):
            logits_BLV, cache = self._forward(tokens_BL, encoder_BSD, cache)
            if length == 0 and self.no_speech is not None:
                no_speech_B = logits_BLV[:, 0].softmax(-1)[:, self.no_speech].tolist()
            logits_BV = logits_BLV[:, -1]
            next_B = self._choose(
                logits_BV, history_BL, length == 0, rules, temperature, noise and [noise[r] for r in rows]
            )
            self._keep(logits_BV, next_B, [drafts[row] for row in rows])
            open_ = [index for index, row in enumerate(rows) if drafts[row].tokens[-1] != self.format.end]
            if not open_:
                break
            history_BL, tokens_BL = torch.cat([history_BL, next_B[:, None]], dim=1), next_B[:, None]
            if 2 * len(open_) <= len(rows) and self.labels.kv_cache == "dynamic":
                chosen = torch.tensor(open_, device=self.device)
                cache.batch_select_indices(chosen)
                encoder_BSD, history_BL, tokens_BL = encoder_BSD[chosen], history_BL[chosen], tokens_BL[chosen]
                rows = [rows[index] for index in open_]
        return no_speech_B, drafts

    def _cache(self, encoder_BSD: torch.Tensor) -> EncoderDecoderCache:
        config = self.model.config
        if self.labels.kv_cache == "dynamic":
            return EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
        return EncoderDecoderCache(
            StaticCache(config=config, max_cache_len=self.format.max_length),
            StaticCache(config=config, max_cache_len=encoder_BSD.shape[1]),
        )

    def _forward(
        self, tokens_BL: torch.Tensor, encoder_BSD: torch.Tensor, cache: EncoderDecoderCache | None
    ) -> tuple[torch.Tensor, Any]:
        """Logits [B, L, V] in float32, and the cache."""
        decoded = self.model.model.decoder(
            input_ids=tokens_BL, encoder_hidden_states=encoder_BSD, past_key_values=cache, use_cache=cache is not None
        )
        return self.model.proj_out(decoded.last_hidden_state).float(), decoded.past_key_values

    def _choose(
        self, logits_BV: torch.Tensor, history_BL: torch.Tensor, first: bool,
        rules: WhisperTimeStampLogitsProcessor | None, temperature: float, noise: Sequence[np.random.Generator],
    ) -> torch.Tensor:  # fmt: skip
        """Next tokens [B] after Whisper's suppressions: the likeliest, or drawn with Gumbel noise."""
        allowed_BV = logits_BV.clone()
        allowed_BV[:, self.format.suppress] = -torch.inf
        if first:
            allowed_BV[:, self.format.suppress_first] = -torch.inf
        if rules is not None:
            allowed_BV = rules(history_BL, allowed_BV)
        if temperature > 0:
            gumbel_BV = np.stack([draw.gumbel(size=logits_BV.shape[1]) for draw in noise])
            allowed_BV = allowed_BV / temperature + torch.from_numpy(gumbel_BV).to(allowed_BV)
        return allowed_BV.argmax(dim=1)

    def _keep(self, logits_BV: torch.Tensor, next_B: torch.Tensor, drafts: Sequence[_Draft]) -> None:
        """Note token, score and distribution of every clip that has not ended."""
        logprob_B = (logits_BV.gather(1, next_B[:, None])[:, 0] - logits_BV.logsumexp(dim=1)).tolist()
        kept = None
        if self.top_k:
            kept = [part.cpu().numpy() for part in top_k_with_tail(logits_BV, self.top_k, self.labels.temperature)]
        for index, (draft, token) in enumerate(zip(drafts, next_B.tolist(), strict=True)):
            if draft.tokens and draft.tokens[-1] == self.format.end:
                continue
            draft.tokens.append(token)
            draft.logprobs.append(logprob_B[index])
            if kept is not None:
                draft.kept.append((kept[0][index], kept[1][index], kept[2][index]))

    def _decoding(self, prompt: np.ndarray, draft: _Draft, temperature: float) -> Decoding:
        distribution = None
        if draft.kept:
            ids, logits, rest = (np.stack(part) for part in zip(*draft.kept, strict=True))
            distribution = TokenDistribution(ids.astype(np.int32), logits, rest)
        tokens = prompt.tolist() + draft.tokens
        mean = float(np.mean(draft.logprobs)) if draft.logprobs else 0.0
        ended = tokens[-1] == self.format.end
        return Decoding(self.text(draft.tokens), tokens, len(prompt), mean, temperature, ended, distribution)

    def text(self, tokens: Sequence[int]) -> str:
        """Words, and timestamps as `<|1.20|>`; other special tokens left out."""
        parts: list[str] = []
        words: list[int] = []
        for token in [*tokens, self.format.end]:
            if token < self.format.end:
                words.append(token)
                continue
            parts.append(self.tokenizer.decode(words))
            words = []
            if token >= self.format.timestamp_begin:
                parts.append(f"<|{(token - self.format.timestamp_begin) * 0.02:.2f}|>")
        return "".join(parts).strip()


def top_k_with_tail(
    logits_BV: torch.Tensor, k: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids [B, K] and values [B, K] of the K largest logits, and log(sum(exp(z / T))) of all others [B]."""
    values_BK, ids_BK = logits_BV.topk(k, dim=1)
    others_BV = logits_BV.scatter(1, ids_BK, -torch.inf)
    return ids_BK, values_BK, (others_BV / temperature).logsumexp(dim=1)


def _noise(name: str, temperature: float) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(f"{name} {temperature}".encode()).digest()))
