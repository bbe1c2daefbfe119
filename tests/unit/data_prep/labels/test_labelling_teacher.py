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
from eval.audio.recordings import read_audio
from eval.decoding.transcriber import Transcriber
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from recipes.schema.labels_section import LabelsSection
from recipes.schema.teacher_section import TeacherSection as Section
from tests.conftest import ROOT, TEACHER
from tests.unit.labels import utterance


def teacher(**labels: object) -> LabellingTeacher:
    return LabellingTeacher(
        TEACHER, Section(model=str(TEACHER)), LabelsSection.model_validate(labels), torch.device("cpu")
    )


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[np.ndarray]:
    return [read_audio(file) for file in sorted((speech / "train").glob("*.flac"))[:6]]


def hear(
    model: LabellingTeacher, clips: Sequence[np.ndarray], names: Sequence[str] | None = None
) -> list[TeacherOutput]:
    return model(clips, names or [str(number) for number in range(len(clips))], [None] * len(clips))


@pytest.fixture(scope="module")
def heard(clips: list[np.ndarray]) -> list[TeacherOutput]:
    return hear(teacher(timestamps=True, top_k=10_000), clips)


def test_greedy_text_is_that_of_the_runtimes(clips: list[np.ndarray], heard: list[TeacherOutput]) -> None:
    transcriber = Transcriber(TorchRuntime(load_model(TEACHER)), TEACHER, "en")
    for one, other in zip(heard, transcriber.transcribe(clips, scores=True), strict=True):
        assert one.plain.text == other.text
        assert one.plain.tokens[one.plain.prompt_length :] == other.tokens
        assert one.plain.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-4)
        assert one.plain.ended
        assert 0 <= one.no_speech_prob < 0.1


def test_timestamps_are_those_of_transformers(clips: list[np.ndarray], heard: list[TeacherOutput]) -> None:
    model: WhisperForConditionalGeneration = load_model(TEACHER)
    features = torch.from_numpy(Transcriber(TorchRuntime(model), TEACHER, "en").features(clips))
    wanted = model.generate(features, language="en", task="transcribe", return_timestamps=True)
    for one, row in zip(heard, wanted, strict=True):
        assert one.timed is not None
        prompt = [257, 258, 260]
        assert one.timed.tokens[: one.timed.prompt_length] == prompt
        tokens = [token for token in row.tolist() if token not in (256, *prompt)]
        assert [token for token in one.timed.tokens[3:] if token != 256] == tokens
        assert one.timed.text.startswith("<|0.")


@pytest.mark.parametrize("labels", [{"kv_cache": "static"}, {"attention": "eager"}, {"top_k": 3}])
def test_no_setting_changes_the_text(
    clips: list[np.ndarray], heard: list[TeacherOutput], labels: dict[str, object]
) -> None:
    for one, other in zip(hear(teacher(**labels), clips), heard, strict=True):
        assert one.plain.tokens == other.plain.tokens


def test_a_label_does_not_depend_on_its_batch(clips: list[np.ndarray], heard: list[TeacherOutput]) -> None:
    model = teacher()
    for number in (0, 3):
        (alone,) = hear(model, [clips[number]])
        assert alone.plain.tokens == heard[number].plain.tokens


def live_logits(model: WhisperForConditionalGeneration, clip: np.ndarray, decoding: Decoding) -> torch.Tensor:
    """[N, V] along the label, by one teacher-forced pass."""
    mel = torch.from_numpy(Transcriber(TorchRuntime(model), TEACHER, "en").features([clip]))
    with torch.no_grad():
        logits = model(input_features=mel, decoder_input_ids=torch.tensor([decoding.tokens[:-1]])).logits[0]
    return logits[decoding.prompt_length - 1 :]


@pytest.mark.parametrize("written", ["plain", "timed"])
def test_the_stored_distribution_is_the_live_one(
    clips: list[np.ndarray], heard: list[TeacherOutput], written: str
) -> None:
    model = load_model(TEACHER)
    student = cut_layers(model, [0, 1, 2, 3], [0, 3])
    for clip, one in zip(clips, heard, strict=True):
        decoding = getattr(one, written)
        kept = decoding.distribution
        ids, logits = torch.from_numpy(kept.ids_NK).long(), torch.from_numpy(kept.logits_NK)
        live_NV, student_NV = live_logits(model, clip, decoding), live_logits(student, clip, decoding)
        assert ids.shape == live_NV.shape, "k was lowered to the vocabulary"
        torch.testing.assert_close(torch.zeros_like(live_NV).scatter(1, ids, logits), live_NV, atol=2e-4, rtol=0)
        log_p, log_q = (torch.log_softmax(value / 2, dim=1) for value in (live_NV, student_NV))
        exact = float((log_p.exp() * (log_p - log_q)).sum())
        stored = float(stored_kl(student_NV, StoredDistribution(ids, logits, torch.from_numpy(kept.rest_N)), 2.0)[0])
        assert stored == pytest.approx(exact, abs=1e-5 * len(live_NV))


def test_the_tail_is_one_bucket(clips: list[np.ndarray], heard: list[TeacherOutput]) -> None:
    short = hear(teacher(top_k=5), clips)
    student_NV = torch.randn(len(heard[0].plain.tokens) - 4, 586, generator=torch.Generator().manual_seed(0))
    whole, kept = heard[0].plain.distribution, short[0].plain.distribution
    assert whole is not None
    assert kept is not None
    np.testing.assert_array_equal(kept.ids_NK, whole.ids_NK[:, :5])
    others = torch.from_numpy(whole.logits_NK[:, 5:]) / 2
    torch.testing.assert_close(torch.from_numpy(kept.rest_N), others.logsumexp(1), atol=1e-4, rtol=0)

    def kl(stored: TokenDistribution) -> float:
        ids, logits, rest = (torch.from_numpy(part) for part in (stored.ids_NK, stored.logits_NK, stored.rest_N))
        return float(stored_kl(student_NV, StoredDistribution(ids.long(), logits, rest), 2.0)[0])

    assert kl(kept) <= kl(whole), "a bucket hides a part of the divergence, never adds to it"


def test_a_degenerate_label_is_sampled_anew_the_same_in_every_batch(
    clips: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = teacher(fallback=[0.4, 1.0])
    monkeypatch.setattr(model, "_degenerate", lambda decoding: decoding.temperature < 1.0)
    together = hear(model, clips)
    (alone,) = hear(model, [clips[2]], ["2"])
    assert {one.plain.temperature for one in together} == {1.0}
    assert alone.plain.tokens == together[2].plain.tokens


def test_a_label_that_no_temperature_mends_stays_greedy(clips: list[np.ndarray], heard: list[TeacherOutput]) -> None:
    for one, other in zip(hear(teacher(fallback_logprob=1.0), clips[:2]), heard, strict=False):
        assert one.plain.temperature == 0
        assert one.plain.tokens == other.plain.tokens


def test_the_language_is_detected_or_taken_from_the_corpus(clips: list[np.ndarray]) -> None:
    assert {one.language for one in hear(teacher(language="detect"), clips)} == {"en"}
    assert {one.language for one in teacher(language="column")(clips[:2], ["a", "b"], ["en", None])} == {"en"}


def test_unreadable_audio_is_named_in_its_label(clips: list[np.ndarray]) -> None:
    batch = [utterance("a"), utterance("b"), utterance("c")]
    first, broken, last = label_batch(teacher(), batch, [clips[0], "no such file", clips[1]])
    assert broken.error == "no such file"
    assert first.error is None
    assert first.text
    assert last.text


def test_batches_fit_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    model = teacher()
    for free, clips in ((1e12, 256), (bytes_per_clip(model) * 12, 8), (1.0, 1)):
        monkeypatch.setattr("data_prep.labels.batched_labelling._free", lambda _device, free=free: free)
        assert teacher_batch_size(model) == clips


OUT_OF_MEMORY = """
import resource, sys
import numpy as np, torch
from tests.unit.data_prep.labels.test_labelling_teacher import teacher
from tests.unit.labels import utterance
from data_prep.pseudo_label import label_batch
model = teacher()
clips = [np.zeros(16_000, np.float32)] * 64
label_batch(model, [utterance("warm")], clips[:1])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 150_000_000,) * 2)
labels = label_batch(model, [utterance(str(number)) for number in range(64)], clips)
assert [label.id for label in labels] == [str(number) for number in range(64)]
"""


def test_out_of_memory_lowers_the_batch_and_loses_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "out of memory with 64 clips, going on with 32" in done.stdout + done.stderr
