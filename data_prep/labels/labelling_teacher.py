"""The teacher as a labeller: batches of audio to transcripts, scores and, if asked for, token distributions.

A batch is labelled in these steps:

1. Encode the audio once; all decodings below share the encoder states.
2. Choose each clip's language and thereby its prompt.
3. Decode greedily, with Whisper's rules on which tokens are suppressed.
4. Decode clips whose text is degenerate again, by sampling at rising temperatures (Radford et al. 2022, arXiv
   2212.04356, section 4.5).
5. If timestamps are asked for, repeat steps 3 and 4 with Whisper's timestamp rules.

Axes: B batch, N samples, F mel bins, T frames, S encoder positions, D width, L tokens, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_prep.audio.torch_log_mel import LogMel
from data_prep.labels.label_store import Decoding, TokenDistribution
from data_prep.labels.token_generation import Hypothesis, TokenGenerator
from eval.runtimes.model_format import ModelFormat, load_tokenizer, no_speech_token
from eval.runtimes.torch_runtime import load_teacher
from eval.scoring.error_rates import compression_ratio
from recipes.core.errors import UserError
from recipes.schema.labels_section import LabelsSection
from recipes.schema.teacher_section import TeacherSection


@dataclass(frozen=True)
class TeacherOutput:
    """The teacher's output for one clip."""

    language: str | None
    """Language code of the prompt."""
    plain: Decoding
    """Transcript without timestamps."""
    timed: Decoding | None
    """Transcript with timestamps, if they were asked for."""
    no_speech_prob: float
    """Probability of the no-speech token at the start of the transcript."""


class LabellingTeacher:
    """A Whisper model that labels audio by greedy decoding, with a fallback to sampling for degenerate texts.

    Args:
        folder: Model folder in Whisper format.
        teacher: Language and task of the prompt.
        labels: Precision, decoding options, and what to store.
        device: Where the model runs.

    Raises UserError when the options ask for timestamps or language detection that the model does not support.
    """

    def __init__(self, folder: Path, teacher: TeacherSection, labels: LabelsSection, device: torch.device):
        self.model = load_teacher(folder, device, labels.precision, labels.quantize, labels.attention)
        self.device, self.options, self.language = device, labels, teacher.language
        self.format = ModelFormat.load(folder, teacher.language, teacher.task)
        self.tokenizer = load_tokenizer(folder)
        self.log_mel = LogMel(self.format.mel_bins).to(device)
        if labels.timestamps and self.format.timestamp_begin >= self.model.config.vocab_size:
            raise UserError("labels.timestamps: expected a teacher with timestamp tokens, found none; set it to false")
        if labels.language == "detect" and not self.format.languages:
            raise UserError(
                "labels.language: detect expects a multilingual teacher, found an English-only one; set it to teacher"
            )
        self.top_k = min(labels.top_k, self.model.config.vocab_size)
        self._generator = TokenGenerator(
            self.model, self.format, no_speech_token(self.tokenizer), top_k=self.top_k,
            tail_temperature=labels.temperature, static_cache=labels.kv_cache == "static",
        )  # fmt: skip

    @torch.inference_mode()
    def __call__(
        self, clips: Sequence[np.ndarray], ids: Sequence[str], languages: Sequence[str | None]
    ) -> list[TeacherOutput]:
        """Label a batch of clips.

        Args:
            clips: Samples [N] of each clip at 16 kHz, at most the model's window.
            ids: Utterance ids. They seed the sampling, so that a label does not depend on the rest of the batch.
            languages: Language codes from the corpus, used if `labels.language` is `column`.
        """
        encoder_BSD = self.encode(clips)
        prompt_languages = self._prompt_languages(encoder_BSD, languages)
        prompt_BL = np.array([self.format.prompt_for(language) for language in prompt_languages])
        no_speech_B, plain = self._decode_with_fallback(encoder_BSD, prompt_BL, ids, timestamps=False)
        timed: list[Decoding] | list[None] = [None] * len(clips)
        if self.options.timestamps:
            # The prompt's last token asks for text without timestamps.
            _, timed = self._decode_with_fallback(encoder_BSD, prompt_BL[:, :-1], ids, timestamps=True)
        return [TeacherOutput(*row) for row in zip(prompt_languages, plain, timed, no_speech_B, strict=True)]

    def encode(self, clips: Sequence[np.ndarray]) -> torch.Tensor:
        """Pad the clips to the model's window and return their encoder states [B, S, D]."""
        samples_BN = np.zeros((len(clips), self.format.window_samples), np.float32)
        for row, clip in zip(samples_BN, clips, strict=True):
            row[: len(clip)] = clip
        mel_BFT = self.log_mel(torch.from_numpy(samples_BN).to(self.device)).to(self.model.dtype)
        return self.model.model.encoder(mel_BFT).last_hidden_state

    def _prompt_languages(self, encoder_BSD: torch.Tensor, corpus: Sequence[str | None]) -> list[str | None]:
        """Return each clip's language code: `teacher.language`, the corpus's own, or the one the teacher detects."""
        if not self.format.languages or self.options.language == "teacher":
            return [self.language] * len(corpus)
        if self.options.language == "column":
            codes = [code or self.language for code in corpus]
            if unknown := {code for code in codes if code not in self.format.languages}:
                raise UserError(
                    f"labels.language: expected languages that the teacher knows, found {unknown} in the corpus; set "
                    "it to teacher or detect"
                )
            return codes
        start_B1 = torch.full((len(corpus), 1), self.format.prompt[0], device=self.device)
        logits_BV = self._generator.run_decoder(start_B1, encoder_BSD, None)[0][:, 0]
        codes, tokens = list(self.format.languages), list(self.format.languages.values())
        return [codes[best] for best in logits_BV[:, tokens].argmax(dim=1).tolist()]

    def _decode_with_fallback(
        self, encoder_BSD: torch.Tensor, prompt_BL: np.ndarray, ids: Sequence[str], *, timestamps: bool
    ) -> tuple[list[float], list[Decoding]]:
        """Decode greedily; sample clips whose text is degenerate at rising temperatures until it no longer is.

        If every temperature gives a degenerate text, the greedy one stays. Returns the probability of no speech and the
        decoding of each clip.
        """
        no_speech_B, hypotheses = self._generator.generate(encoder_BSD, prompt_BL, timestamps=timestamps)
        decodings = [self._finish(prompt, item, 0.0) for prompt, item in zip(prompt_BL, hypotheses, strict=True)]
        for temperature in self.options.fallback:
            retry = [
                row for row, greedy in enumerate(decodings) if greedy.temperature == 0 and self._is_degenerate(greedy)
            ]
            if not retry:
                break
            generators = [_random_generator(ids[row], temperature) for row in retry]
            _, hypotheses = self._generator.generate(
                encoder_BSD[retry], prompt_BL[retry], timestamps=timestamps, temperature=temperature,
                generators=generators,
            )  # fmt: skip
            for row, hypothesis in zip(retry, hypotheses, strict=True):
                sampled = self._finish(prompt_BL[row], hypothesis, temperature)
                if not self._is_degenerate(sampled):
                    decodings[row] = sampled
        return no_speech_B, decodings

    def _is_degenerate(self, decoding: Decoding) -> bool:
        """Return whether the text repeats itself, is too improbable, or reached the maximum length."""
        return (
            compression_ratio(decoding.text) > self.options.fallback_compression_ratio
            or decoding.mean_logprob < self.options.fallback_logprob
            or not decoding.ended
        )

    def _finish(self, prompt: np.ndarray, hypothesis: Hypothesis, temperature: float) -> Decoding:
        distribution = None
        if hypothesis.distributions:
            ids, logits, tail = (np.stack(part) for part in zip(*hypothesis.distributions, strict=True))
            distribution = TokenDistribution(ids.astype(np.int32), logits, tail)
        tokens = prompt.tolist() + hypothesis.tokens
        return Decoding(
            text=self._detokenize(hypothesis.tokens), tokens=tokens, prompt_length=len(prompt),
            mean_logprob=float(np.mean(hypothesis.logprobs)) if hypothesis.logprobs else 0.0, temperature=temperature,
            ended=tokens[-1] == self.format.end, distribution=distribution,
        )  # fmt: skip

    def _detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text, with timestamps written as `<|1.20|>` and without other special tokens."""
        parts: list[str] = []
        text_tokens: list[int] = []
        for token in [*tokens, self.format.end]:
            if token < self.format.end:
                text_tokens.append(token)
                continue
            parts.append(self.tokenizer.decode(text_tokens))
            text_tokens = []
            if token >= self.format.timestamp_begin:
                parts.append(f"<|{(token - self.format.timestamp_begin) * 0.02:.2f}|>")
        return "".join(parts).strip()


def _random_generator(utterance_id: str, temperature: float) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(f"{utterance_id} {temperature}".encode()).digest()))
