"""Speculative decoding gives the teacher's own greedy text, whatever the draft."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperForConditionalGeneration

from distill.models.cutting import cut_layers
from eval.audio.recordings import read_audio
from eval.decoding.slot_decoder import SlotDecoder
from eval.decoding.speculative import SpeculativeRuntime, open_speculative
from eval.decoding.transcriber import Transcriber
from eval.runtimes.interface import Generator
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from recipes.core.errors import UserError
from tests.bench.decoder_passes import PassCosts, passes_without_draft, record_passes
from tests.conftest import TEACHER
from tests.unit.eval.decoding.test_transcribe import transcribe
from tests.unit.models import PROMPT, demo_student, random_mel, random_whisper

pytestmark = pytest.mark.usefixtures("one_thread")

END = 2
WHISPER = random_whisper()
DRAFTS = {"itself": WHISPER, "its first layer": cut_layers(WHISPER, [0], [0]), "a stranger": random_whisper(1)}


def greedy(
    model: WhisperForConditionalGeneration, mel_BFT: np.ndarray, limit: int, suppress: list[int], first: list[int]
) -> list[list[int]]:
    """Decode greedily with one step per token, one clip at a time."""
    runtime, rows = TorchRuntime(model), []
    for mel_FT in mel_BFT:
        state, tokens, generated = runtime.encode(mel_FT[None]), np.array([PROMPT]), list[int]()
        while len(generated) < limit and END not in generated:
            logits_1V, state = runtime.step(tokens, state)
            logits_1V[:, suppress + (first if not generated else [])] = -np.inf
            tokens = logits_1V.argmax(axis=1, keepdims=True)
            generated.append(int(tokens[0, 0]))
        rows.append(generated)
    return rows


@settings(deadline=None, max_examples=40)
@given(
    draft=st.sampled_from(sorted(DRAFTS)),
    batch=st.integers(1, 5),
    draft_tokens=st.one_of(st.none(), st.integers(1, 25)),
    limit=st.integers(0, 21),
    seed=st.integers(0, 99),
    suppress=st.lists(st.integers(3, 299), max_size=3),
    first=st.lists(st.integers(2, 299), max_size=3),
)
def test_every_row_is_the_teachers_own_greedy_text(
    draft: str, batch: int, draft_tokens: int | None, limit: int, seed: int, suppress: list[int], first: list[int]
) -> None:
    shape = random_mel(WHISPER, batch).shape
    mel_BFT = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    runtime = SpeculativeRuntime(WHISPER, DRAFTS[draft], draft_tokens)
    rows = runtime.generate(
        runtime.encode(mel_BFT), PROMPT, limit, end=END, suppress=suppress, suppress_first=first, scores=True
    )
    assert [tokens for tokens, _ in rows] == greedy(WHISPER, mel_BFT, limit, suppress, first)
    counts = runtime.statistics
    assert counts.written == sum(len(tokens) for tokens, _ in rows)
    assert counts.accepted <= counts.drafted
    assert counts.passes + counts.accepted >= counts.written
    if draft == "itself":
        assert counts.accepted == counts.drafted


def test_passes_are_counted_and_priced() -> None:
    runtime = SpeculativeRuntime(WHISPER, DRAFTS["its first layer"], 3)
    mel_BFT = random_mel(WHISPER)
    with record_passes(teacher=runtime.model, draft=runtime.draft) as passes:
        ((generated, _),) = runtime.generate(
            runtime.encode(mel_BFT), PROMPT, 9, end=END, suppress=[END], suppress_first=[]
        )
    read = [tokens for who, tokens in passes if who == "teacher"]
    counts = runtime.statistics
    assert (len(read), sum(read)) == (counts.passes, len(PROMPT) + counts.drafted + counts.passes - 1)
    first, later = 100.0, 2.0 * (sum(read) - read[0])
    costs = PassCosts(
        {"teacher": {1: 2.0, 20: 40.0}, "draft": {1: 0.0, 20: 0.0}}, {"teacher": first, "draft": 5.0}, 0.0
    )
    assert costs.total_ms([passes, passes]) == pytest.approx(2 * (first + 2.0 * read[0] + later + 5.0))
    assert costs.total_ms([passes], later_pass_factor=3.0) == pytest.approx(first + 2.0 * read[0] + 3.0 * later + 5.0)
    assert len(passes_without_draft(len(generated))) == len(generated)


def test_rows_at_different_positions_get_the_logits_they_get_alone() -> None:
    draw, encoder_BSD = torch.Generator().manual_seed(0), torch.randn(3, 35, 32)
    text_BN = torch.randint(0, 300, (3, 12), generator=draw)
    starts = [2, 5, 8]
    with torch.no_grad():
        together = SlotDecoder(WHISPER, encoder_BSD, 20)
        together(torch.cat([text_BN[:, :9], text_BN[:, :3]], dim=1), torch.zeros(3, dtype=torch.int64))  # rejected
        together(text_BN[:, :8], torch.zeros(3, dtype=torch.int64))
        tokens_BL = torch.stack([row[start : start + 3] for row, start in zip(text_BN, starts, strict=True)])
        found_BLV = together(tokens_BL, torch.tensor(starts))
        for row, start in enumerate(starts):
            alone_1LV = WHISPER(
                encoder_outputs=(encoder_BSD[row : row + 1],), decoder_input_ids=text_BN[row : row + 1, : start + 3]
            ).logits
            torch.testing.assert_close(found_BLV[row], alone_1LV[0, start:], atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[np.ndarray]:
    return [read_audio(file) for file in sorted((speech / "train").glob("*.flac"))]


@pytest.mark.parametrize("options", [{}, {"exact_tokens": 30}, {"max_tokens": 4}, {"previous": "one two"}])
@pytest.mark.parametrize("draft", ["shared encoder", "shorter encoder"])
def test_real_texts_are_the_teachers(clips: list[np.ndarray], draft: str, options: dict[str, Any]) -> None:
    teacher = load_model(TEACHER)
    runtime = SpeculativeRuntime(teacher, demo_student(4 if draft == "shared encoder" else 3))
    assert isinstance(runtime, Generator)
    assert runtime.shares_encoder == (draft == "shared encoder")
    plain = Transcriber(TorchRuntime(teacher), TEACHER, "en")
    ours = Transcriber.with_runtime(plain, runtime).transcribe(clips[:6], scores=True, **options)
    for found, expected in zip(ours, plain.transcribe(clips[:6], scores=True, **options), strict=True):
        assert (found.tokens, found.text) == (expected.tokens, expected.text)
        assert found.mean_logprob == pytest.approx(expected.mean_logprob, abs=1e-4)
    assert runtime.statistics.passes < runtime.statistics.written, "no drafted token was accepted"


def test_timestamps_are_refused(clips: list[np.ndarray]) -> None:
    teacher = load_model(TEACHER)
    transcriber = Transcriber(SpeculativeRuntime(teacher, teacher), TEACHER, "en")
    with pytest.raises(UserError, match="without timestamps"):
        transcriber.transcribe(clips[:1], timestamps=True)


def test_forced_logits_are_the_teachers(clips: list[np.ndarray]) -> None:
    teacher = load_model(TEACHER)
    runtime, plain = SpeculativeRuntime(teacher, teacher), TorchRuntime(teacher)
    transcriber = Transcriber(plain, TEACHER, "en")
    mel_BFT, prompt, text = transcriber.features(clips[:1]), transcriber.format.prompt, [40, 50, 60]
    found, state = runtime.forced_logits(runtime.encode(mel_BFT), prompt, text), plain.encode(mel_BFT)
    for step, tokens in enumerate([prompt, text[:1], text[1:2]]):
        expected_1V, state = plain.step(np.array([tokens]), state)
        np.testing.assert_allclose(found[step], expected_1V, atol=1e-3)


def test_a_draft_with_other_tokens_or_mel_bins_is_refused(tmp_path: Path) -> None:
    shutil.copytree(TEACHER, tmp_path / "student")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    (tmp_path / "student" / "config.json").write_text(json.dumps(config | {"num_mel_bins": 128}))
    with pytest.raises(UserError, match="expected 80 mel bins as"):
        open_speculative(TEACHER, tmp_path / "student", 1)
    file = tmp_path / "student" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["added_tokens"][-1]["content"] = "<|other|>"
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="expected the vocabulary of"):
        open_speculative(TEACHER, tmp_path / "student", 1)


def test_the_command_writes_the_same_text_with_a_draft(speech: Path) -> None:
    plain, drafted = (
        transcribe(TEACHER, speech / "test", "--runtime", "torch", *options) for options in ((), ("--draft", TEACHER))
    )
    assert plain.stdout
    assert drafted.stdout == plain.stdout
    assert json.loads(drafted.stderr.split("draft: ")[1].splitlines()[0])["acceptance"] == 1
    refused = transcribe(TEACHER, speech / "test", "--draft", TEACHER, "--timestamps")
    assert refused.returncode == 2
    assert "error: --draft: works in --runtime torch" in refused.stderr
