"""Tests of the labelling teacher: its texts, timestamps, stored distributions, fallback and batches."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from data_prep.labels.batched_labelling import bytes_per_clip, label_batch, teacher_batch_size
from data_prep.labels.label_store import Decoding, TokenDistribution
from data_prep.labels.labelling_teacher import LabellingTeacher, TeacherOutput
from distill.losses.distillation_loss import StoredDistribution, stored_kl
from distill.models.cutting import cut_layers
from eval.audio.recordings import AudioError, read_audio
from eval.decoding.transcriber import Transcriber
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from recipes.schema.labels_section import LabelsSection
from recipes.schema.teacher_section import TeacherSection
from tests.conftest import ROOT, TEACHER
from tests.unit.labels import utterance


def teacher(**labels: object) -> LabellingTeacher:
    return LabellingTeacher(
        TEACHER, TeacherSection(model=str(TEACHER)), LabelsSection.model_validate(labels), torch.device("cpu")
    )


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[np.ndarray]:
    return [read_audio(file) for file in sorted((speech / "train").glob("*.flac"))[:6]]


def transcribe(
    model: LabellingTeacher, clips: Sequence[np.ndarray], ids: Sequence[str] | None = None
) -> list[TeacherOutput]:
    return model(clips, ids or [str(number) for number in range(len(clips))], [None] * len(clips))


@pytest.fixture(scope="module")
def outputs(clips: list[np.ndarray]) -> list[TeacherOutput]:
    return transcribe(teacher(timestamps=True, top_k=10_000), clips)


def test_greedy_text_is_that_of_the_runtimes(clips: list[np.ndarray], outputs: list[TeacherOutput]) -> None:
    transcriber = Transcriber(TorchRuntime(load_model(TEACHER)), TEACHER, "en")
    for output, expected in zip(outputs, transcriber.transcribe(clips, scores=True), strict=True):
        assert output.plain.text == expected.text
        assert output.plain.tokens[output.plain.prompt_length :] == expected.tokens
        assert output.plain.mean_logprob == pytest.approx(expected.mean_logprob, abs=1e-4)
        assert output.plain.ended
        assert 0 <= output.no_speech_prob < 0.1


def test_timestamps_are_those_of_transformers(clips: list[np.ndarray], outputs: list[TeacherOutput]) -> None:
    model: WhisperForConditionalGeneration = load_model(TEACHER)
    features = torch.from_numpy(Transcriber(TorchRuntime(model), TEACHER, "en").features(clips))
    wanted = model.generate(features, language="en", task="transcribe", return_timestamps=True)
    for output, row in zip(outputs, wanted, strict=True):
        assert output.timed is not None
        prompt = [257, 258, 260]
        assert output.timed.tokens[: output.timed.prompt_length] == prompt
        tokens = [token for token in row.tolist() if token not in (256, *prompt)]
        assert [token for token in output.timed.tokens[3:] if token != 256] == tokens
        assert output.timed.text.startswith("<|0.")


@pytest.mark.parametrize("labels", [{"kv_cache": "static"}, {"attention": "eager"}, {"top_k": 3}])
def test_no_setting_changes_the_text(
    clips: list[np.ndarray], outputs: list[TeacherOutput], labels: dict[str, object]
) -> None:
    for output, expected in zip(transcribe(teacher(**labels), clips), outputs, strict=True):
        assert output.plain.tokens == expected.plain.tokens


def test_a_label_does_not_depend_on_its_batch(clips: list[np.ndarray], outputs: list[TeacherOutput]) -> None:
    model = teacher()
    for number in (0, 3):
        (alone,) = transcribe(model, [clips[number]])
        assert alone.plain.tokens == outputs[number].plain.tokens


def live_logits(model: WhisperForConditionalGeneration, clip: np.ndarray, decoding: Decoding) -> torch.Tensor:
    """Return logits [N, V] at the tokens of the label, from one teacher-forced pass."""
    mel = torch.from_numpy(Transcriber(TorchRuntime(model), TEACHER, "en").features([clip]))
    with torch.no_grad():
        logits = model(input_features=mel, decoder_input_ids=torch.tensor([decoding.tokens[:-1]])).logits[0]
    return logits[decoding.prompt_length - 1 :]


@pytest.mark.parametrize("written", ["plain", "timed"])
def test_the_stored_distribution_is_the_live_one(
    clips: list[np.ndarray], outputs: list[TeacherOutput], written: str
) -> None:
    model = load_model(TEACHER)
    student = cut_layers(model, [0, 1, 2, 3], [0, 3])
    for clip, output in zip(clips, outputs, strict=True):
        decoding = getattr(output, written)
        distribution = decoding.distribution
        ids, logits = torch.from_numpy(distribution.ids_NK).long(), torch.from_numpy(distribution.logits_NK)
        live_NV, student_NV = live_logits(model, clip, decoding), live_logits(student, clip, decoding)
        assert ids.shape == live_NV.shape, "top_k is limited to the size of the vocabulary"
        torch.testing.assert_close(torch.zeros_like(live_NV).scatter(1, ids, logits), live_NV, atol=2e-4, rtol=0)
        log_p, log_q = (torch.log_softmax(value / 2, dim=1) for value in (live_NV, student_NV))
        exact = float((log_p.exp() * (log_p - log_q)).sum())
        stored = float(
            stored_kl(student_NV, StoredDistribution(ids, logits, torch.from_numpy(distribution.tail_N)), 2.0)[0]
        )
        assert stored == pytest.approx(exact, abs=1e-5 * len(live_NV))


def test_the_tail_is_summed_in_one_bucket(clips: list[np.ndarray], outputs: list[TeacherOutput]) -> None:
    short = transcribe(teacher(top_k=5), clips)
    student_NV = torch.randn(len(outputs[0].plain.tokens) - 4, 586, generator=torch.Generator().manual_seed(0))
    full, top_5 = outputs[0].plain.distribution, short[0].plain.distribution
    assert full is not None
    assert top_5 is not None
    np.testing.assert_array_equal(top_5.ids_NK, full.ids_NK[:, :5])
    others = torch.from_numpy(full.logits_NK[:, 5:]) / 2
    torch.testing.assert_close(torch.from_numpy(top_5.tail_N), others.logsumexp(1), atol=1e-4, rtol=0)

    def kl(stored: TokenDistribution) -> float:
        ids, logits, tail = (torch.from_numpy(part) for part in (stored.ids_NK, stored.logits_NK, stored.tail_N))
        return float(stored_kl(student_NV, StoredDistribution(ids.long(), logits, tail), 2.0)[0])

    assert kl(top_5) <= kl(full), "merging tokens into one bucket never increases the divergence"


def test_sampling_a_degenerate_label_does_not_depend_on_the_batch(
    clips: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = teacher(fallback=[0.4, 1.0])
    monkeypatch.setattr(model, "_is_degenerate", lambda decoding: decoding.temperature < 1.0)
    together = transcribe(model, clips)
    (alone,) = transcribe(model, [clips[2]], ["2"])
    assert {output.plain.temperature for output in together} == {1.0}
    assert alone.plain.tokens == together[2].plain.tokens


def test_a_label_that_is_degenerate_at_every_temperature_stays_greedy(
    clips: list[np.ndarray], outputs: list[TeacherOutput]
) -> None:
    for output, expected in zip(transcribe(teacher(fallback_logprob=1.0), clips[:2]), outputs, strict=False):
        assert output.plain.temperature == 0
        assert output.plain.tokens == expected.plain.tokens


def test_the_language_is_detected_or_taken_from_the_corpus(clips: list[np.ndarray]) -> None:
    assert {output.language for output in transcribe(teacher(language="detect"), clips)} == {"en"}
    assert {output.language for output in teacher(language="column")(clips[:2], ["a", "b"], ["en", None])} == {"en"}


def test_the_label_of_unreadable_audio_holds_the_reason(clips: list[np.ndarray]) -> None:
    batch = [utterance("a"), utterance("b"), utterance("c")]
    first, broken, last = label_batch(teacher(), batch, [clips[0], AudioError("no such file"), clips[1]])
    assert broken.error == "no such file"
    assert first.error is None
    assert first.text
    assert last.text


def test_the_automatic_batch_size_fits_in_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = teacher()
    for free, clips in ((1e12, 256), (bytes_per_clip(model) * 12, 8), (1.0, 1)):
        monkeypatch.setattr("data_prep.labels.batched_labelling._free_memory", lambda _device, free=free: free)
        assert teacher_batch_size(model) == clips


OUT_OF_MEMORY = """
import resource, sys
import numpy as np, torch
from tests.unit.data_prep.labels.test_labelling_teacher import teacher
from tests.unit.labels import utterance
from data_prep.labels.batched_labelling import label_batch
model = teacher()
clips = [np.zeros(16_000, np.float32)] * 64
label_batch(model, [utterance("warm")], clips[:1])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 150_000_000,) * 2)
labels = label_batch(model, [utterance(str(number)) for number in range(64)], clips)
assert [label.id for label in labels] == [str(number) for number in range(64)]
"""


def test_a_batch_that_does_not_fit_is_halved_and_no_label_is_lost() -> None:
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "out of memory with 64 clips, going on with 32" in done.stdout + done.stderr
