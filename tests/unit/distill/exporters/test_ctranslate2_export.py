"""CTranslate2 export: equal to PyTorch, complete for faster-whisper, and usable by the Transcriber."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import WhisperForConditionalGeneration

from distill.exporters.ctranslate2_export import FILES, default_alignment_heads, export_ctranslate2, token_names
from distill.exporters.export_source import ExportSource
from distill.exporters.parity import TorchReference, compare_with_torch
from distill.models.saving import save_model
from eval.audio.recordings import read_audio
from eval.decoding.transcriber import Transcriber
from eval.latency.timing import TimedGenerator
from eval.runtimes.interface import Generator
from eval.runtimes.registry import open_runtime, weight_files
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from recipes.core.errors import UserError
from tests.conftest import TEACHER
from tests.unit.models import demo_student, random_whisper

PRECISIONS = ("fp32", "int8")


def random_128() -> WhisperForConditionalGeneration:
    """Return a model with 128 mel bins, unequal depths, more embeddings than tokens, and a window of 2 s."""
    return random_whisper(
        vocab_size=600, d_model=64, decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=96,
        max_source_positions=100, max_target_positions=40, pad_token_id=256, bos_token_id=256, eos_token_id=256,
        decoder_start_token_id=257,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["teacher", "random-128"])
def student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    """Return a checkpoint whose folder also has both exports, and the model that was exported."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "teacher":
        save_model(demo_student(), folder, processors=TEACHER, drop_alignment_heads=True)
    else:
        save_model(random_128(), folder, processors=TEACHER, drop_alignment_heads=True)
        edit(folder / "preprocessor_config.json", feature_size=128, chunk_length=2, n_samples=32_000)
        edit(folder / "generation_config.json", max_length=40, suppress_tokens=[5, 7])
    source = ExportSource(load_model(folder), folder, [])
    export_ctranslate2(source, folder, PRECISIONS)
    return source


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[np.ndarray]:
    return [read_audio(file) for file in sorted((speech / "train").glob("*.flac"))]


def pair(student: ExportSource, precision: str = "fp32") -> tuple[Transcriber, Transcriber]:
    """Return transcribers with PyTorch and with CTranslate2."""
    expected = Transcriber(TorchRuntime(student.model), student.source, "en")
    return expected, Transcriber.with_runtime(
        expected, open_runtime("ctranslate2", student.source, precision, threads=1)
    )


def test_fp32_decodes_as_torch_in_batches(student: ExportSource, clips: list[np.ndarray]) -> None:
    torch_side, other = pair(student)
    for start in range(0, 8, 2):
        mel_BFT = torch_side.features(clips[start : start + 2])
        for expected, found in zip(
            torch_side.decode(mel_BFT, scores=True), other.decode(mel_BFT, scores=True), strict=True
        ):
            assert found.tokens == expected.tokens
            assert found.text == expected.text
            assert found.mean_logprob == pytest.approx(expected.mean_logprob, abs=1e-4)


# The PSNR is 20 log10(largest expected value / root mean square error), dB.
@pytest.mark.parametrize(("precision", "psnr_db"), [("fp32", 100), ("int8", 30)])
def test_parity_with_torch(student: ExportSource, speech: Path, precision: str, psnr_db: float) -> None:
    torch_side, other = pair(student, precision)
    recordings = [([str(file)], None) for file in sorted((speech / "train").glob("*.flac"))[:4]]
    reference = TorchReference.measure(torch_side, recordings, 12, str.lower)
    figures = compare_with_torch(reference, other.runtime, precision)
    assert figures.min_psnr_db > psnr_db
    assert precision != "fp32" or figures.equal_text == 1


def test_limits_and_missing_scores(student: ExportSource, clips: list[np.ndarray]) -> None:
    _, transcriber = pair(student)
    for limit in (1, 2, 3, 7):
        for transcript in transcriber.transcribe(clips[:2], max_tokens=limit):
            assert len(transcript.tokens) <= limit
            assert np.isnan(transcript.mean_logprob)
    for transcript in transcriber.transcribe(clips[:2], exact_tokens=30):
        assert len(transcript.tokens) == 30
        assert transcriber.format.end not in transcript.tokens


def test_a_state_can_be_continued_twice(student: ExportSource, clips: list[np.ndarray]) -> None:
    _, transcriber = pair(student)
    runtime, prompt_BL = transcriber.runtime, np.array([transcriber.format.prompt] * 2)
    _, state = runtime.step(prompt_BL, runtime.encode(transcriber.features(clips[:2])))
    one_BL, other_BL = np.array([[65], [66]]), np.array([[67], [68]])
    before_BV, _ = runtime.step(one_BL, state)
    runtime.step(other_BL, state)
    after_BV, _ = runtime.step(one_BL, state)
    np.testing.assert_array_equal(before_BV, after_BV)


def test_a_clip_is_timed_by_its_parts(student: ExportSource, clips: list[np.ndarray]) -> None:
    _, transcriber = pair(student)
    assert isinstance(transcriber.runtime, Generator)
    assert not isinstance(TorchRuntime(student.model), Generator)
    timed = TimedGenerator(transcriber.runtime)
    Transcriber.with_runtime(transcriber, timed).transcribe(clips[:1], exact_tokens=20)
    (first,), (token,) = timed.prompt, timed.token
    assert len(timed.encoder) == 1
    assert timed.overhead == first
    assert first > 0
    assert token < first


@pytest.mark.parametrize("precision", PRECISIONS)
def test_folder_has_what_faster_whisper_reads(student: ExportSource, precision: str) -> None:
    folder = student.source / f"ctranslate2-{precision}"
    assert {file.name for file in folder.iterdir()} == {"model.bin", "config.json", "vocabulary.json", *FILES}
    config, vocabulary = (json.loads((folder / name).read_text()) for name in ("config.json", "vocabulary.json"))
    layers, heads = student.model.config.decoder_layers, student.model.config.decoder_attention_heads
    assert config["alignment_heads"] == [[layers // 2, head] for head in range(heads)]
    assert config["lang_ids"] == [258]
    assert config["suppress_ids_begin"] == [256]
    assert len(vocabulary) == len(set(vocabulary)) == student.model.config.vocab_size
    assert vocabulary[256:259] == ["<|endoftext|>", "<|startoftranscript|>", "<|en|>"]
    assert weight_files("ctranslate2", student.source, precision) == [folder / "model.bin"]


def test_int8_is_small_and_leaves_the_model_unchanged(student: ExportSource) -> None:
    sizes = [(student.source / f"ctranslate2-{name}" / "model.bin").stat().st_size for name in PRECISIONS]
    assert sizes[1] < 0.45 * sizes[0]
    weights = load_model(student.source).state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in student.model.state_dict().items())


def test_heads_of_cut_layers_are_dropped() -> None:
    model = random_128()
    assert default_alignment_heads({"alignment_heads": [[1, 3], [2, 0], [5, 1]]}, model) == [[1, 3]]
    assert default_alignment_heads({"alignment_heads": [[5, 1]]}, model) == [[1, head] for head in range(4)]
    assert default_alignment_heads({}, model) == [[1, head] for head in range(4)]


def test_names_keep_their_ids_if_the_tokenizer_has_gaps() -> None:
    tokenizer = Tokenizer.from_file(str(TEACHER / "tokenizer.json"))
    names = token_names(tokenizer, 600)
    assert all(names[id_] == name for name, id_ in tokenizer.get_vocab().items())
    assert names[585:588] == ["<|6.40|>", "<|6.42|>", "<|6.44|>"]
    assert len(set(names)) == 600


@pytest.mark.parametrize("name", ["model.bin", "config.json", "vocabulary.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "rubbish", "empty"])
@pytest.mark.parametrize("student", ["random-128"], indirect=True)
def test_damaged_file_is_a_user_error(student: ExportSource, tmp_path: Path, name: str, damage: str) -> None:
    folder = tmp_path / "ctranslate2-fp32"
    shutil.copytree(student.source / "ctranslate2-fp32", folder)
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage != "missing":
        broken = {"truncated": content[: len(content) // 2], "rubbish": b"not a model", "empty": b""}
        (folder / name).write_bytes(broken[damage])
    with pytest.raises(UserError, match="ctranslate2-fp32") as raised:
        open_runtime("ctranslate2", tmp_path, "fp32", threads=1)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("student", ["random-128"], indirect=True)
def test_other_suppressed_tokens_than_the_exports_are_refused(student: ExportSource, clips: list[np.ndarray]) -> None:
    runtime = open_runtime("ctranslate2", student.source, "fp32", threads=1)
    transcriber = Transcriber(runtime, student.source, "en")
    transcriber.format.suppress_first.append(9)
    with pytest.raises(UserError, match=r"suppress_ids_begin \[9, 256\]"):
        transcriber.transcribe(clips[:1])


def test_unsupported_students_are_refused(tmp_path: Path) -> None:
    model = random_128()
    with pytest.raises(UserError, match=r"generation_config.json: expected"):
        export_ctranslate2(ExportSource(model, tmp_path, []), tmp_path, ["fp32"])
    with pytest.raises(ValueError, match="fp16"):
        export_ctranslate2(ExportSource(model, TEACHER, []), tmp_path, ["fp16"])
    model.config.activation_function = "relu"
    with pytest.raises(UserError, match="activation_function gelu, found relu"):
        export_ctranslate2(ExportSource(model, TEACHER, []), tmp_path, ["fp32"])


def test_runtime_needs_neither_torch_nor_transformers(student: ExportSource) -> None:
    program = (
        "import sys; from pathlib import Path; from eval.runtimes.registry import open_runtime; "
        f"open_runtime('ctranslate2', Path({str(student.source)!r}), 'int8', 1); "
        "found = {'torch', 'transformers'} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
