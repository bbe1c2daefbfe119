"""Greedy decoding, compared with transformers' `generate` on synthesized speech."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperTokenizer

from eval.audio.recordings import read_audio
from eval.decoding.transcriber import Transcriber
from eval.runtimes.model_format import ModelFormat
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from recipes.core.errors import UserError
from tests.conftest import TEACHER


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[np.ndarray]:
    return [read_audio(file) for file in sorted((speech / "train").glob("*.flac"))]


def test_texts_equal_transformers_generate(clips: list[np.ndarray]) -> None:
    model = load_model(TEACHER)
    ours = Transcriber(TorchRuntime(model), TEACHER, "en").transcribe(clips)
    features = WhisperFeatureExtractor.from_pretrained(TEACHER)(clips, sampling_rate=16_000, return_tensors="pt")
    generated = model.generate(features.input_features, language="en", task="transcribe")
    theirs = WhisperTokenizer.from_pretrained(TEACHER).batch_decode(generated, skip_special_tokens=True)
    assert [transcript.text for transcript in ours] == [text.strip() for text in theirs]
    assert len({transcript.text for transcript in ours}) > 10, "the clips have too few different texts"


def test_a_batch_gives_the_texts_of_single_clips(clips: list[np.ndarray]) -> None:
    transcriber = Transcriber(TorchRuntime(load_model(TEACHER)), TEACHER, "en")
    together = transcriber.transcribe(clips[:6], scores=True)
    for clip, expected in zip(clips[:6], together, strict=True):
        (alone,) = transcriber.transcribe([clip], scores=True)
        assert alone.tokens == expected.tokens
        assert alone.mean_logprob == pytest.approx(expected.mean_logprob, abs=1e-4)


def test_mean_logprob_is_the_models_own(clips: list[np.ndarray]) -> None:
    model = load_model(TEACHER)
    transcriber = Transcriber(TorchRuntime(model), TEACHER, "en")
    mel = transcriber.features(clips[:1])
    (transcript,) = transcriber.decode(mel, scores=True)
    tokens = torch.tensor([transcriber.format.prompt + transcript.tokens])
    with torch.no_grad():
        logits = model(input_features=torch.from_numpy(mel), decoder_input_ids=tokens[:, :-1]).logits
    start = len(transcriber.format.prompt)
    chosen = logits.log_softmax(-1)[0, start - 1 :].gather(1, tokens[0, start:, None])
    assert transcript.mean_logprob == pytest.approx(float(chosen.mean()), abs=2e-3)


def test_limits(clips: list[np.ndarray]) -> None:
    transcriber = Transcriber(TorchRuntime(load_model(TEACHER)), TEACHER, "en")
    (short,) = transcriber.transcribe(clips[:1], max_tokens=3)
    assert len(short.tokens) == 3
    (exact,) = transcriber.transcribe(clips[:1], exact_tokens=60)
    assert len(exact.tokens) == 60
    assert transcriber.format.end not in exact.tokens


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(UserError, match=r"teacher.language: expected one of en .* found xx"):
        ModelFormat.load(TEACHER, "xx", "transcribe")


def test_timestamps_are_those_of_transformers(clips: list[np.ndarray]) -> None:
    model = load_model(TEACHER)
    transcriber = Transcriber(TorchRuntime(model), TEACHER, "en")
    ours = transcriber.transcribe(clips, timestamps=True)
    features = WhisperFeatureExtractor.from_pretrained(TEACHER)(clips, sampling_rate=16_000, return_tensors="pt")
    generated = model.generate(features.input_features, language="en", task="transcribe", return_timestamps=True)
    theirs = WhisperTokenizer.from_pretrained(TEACHER).batch_decode(generated, skip_special_tokens=True)
    equal = [one.text == text.strip() for one, text in zip(ours, theirs, strict=True)]
    assert sum(equal) >= 0.9 * len(equal), "transformers stops where a segment is cut off and begins another window"
    for clip, transcript in zip(clips, ours, strict=True):
        for start, end, text in transcriber.segments(transcript, len(clip) / 16_000):
            assert 0 <= start < end <= round(len(clip) / 16_000, 2) + 0.01
            assert text


def test_previous_text_comes_before_the_prompt_and_is_cut_to_half(clips: list[np.ndarray]) -> None:
    seen = []

    class Watched(TorchRuntime):
        def step(self, tokens_BL: np.ndarray, state: Any) -> Any:
            seen.append(tokens_BL.copy())
            return super().step(tokens_BL, state)

    transcriber = Transcriber(Watched(load_model(TEACHER)), TEACHER, "en")
    transcriber.transcribe(clips[:1], previous="one two", max_tokens=3)
    previous = transcriber.tokenizer.encode(" one two", add_special_tokens=False).ids
    assert seen[0].tolist() == [[transcriber.format.start_of_previous, *previous, *transcriber.format.prompt]]
    long = "word " * 500
    transcriber.transcribe(clips[:1], previous=long, max_tokens=3)
    assert seen[3].shape[1] == transcriber.format.max_length // 2 + len(transcriber.format.prompt)


def test_language_and_silence_are_detected(clips: list[np.ndarray]) -> None:
    transcriber = Transcriber(TorchRuntime(load_model(TEACHER)), TEACHER, "en")
    for detected in transcriber.detect_language(transcriber.features(clips[:2])):
        assert detected.language == "en"
        assert 0 <= detected.no_speech_prob <= 1
