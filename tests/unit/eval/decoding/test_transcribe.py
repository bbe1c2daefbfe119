"""`sottovoce transcribe`: which model, which files, and batches that fit a memory cap."""

import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.decoding.file_results import FileTranscript
from eval.decoding.file_transcription import find_audio_files
from eval.decoding.memory_batches import MAX_BATCH, BatchSize, transcribe_within_memory
from eval.runtimes.registry import available_artefacts, choose_artefact
from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import UserError
from recipes.core.logs import configure_logging
from tests.conftest import ROOT, TEACHER


@given(st.floats(100, 4000), st.floats(10, 4000), st.floats(0, 300), st.integers(1, MAX_BATCH))
def test_batches_are_planned_below_the_cap_and_at_most_double(
    cap: float, floor: float, per_clip: float, limit: int
) -> None:
    size, sizes = BatchSize(cap, floor, limit), []
    for _ in range(10):
        sizes.append(size.size)
        size.update(size.size, floor + per_clip * size.size)
    for before, after in pairwise(sizes):
        assert after <= min(limit, 2 * before)
        assert after == 1 or floor + after * per_clip <= cap * (1 + 1e-9)
    if floor + limit * max(1, per_clip) + 1 < 0.9 * cap:
        assert sizes[-1] == limit


WORKER = """
import json, sys, time
start, most = map(int, sys.argv[1:])
size = 1
while start < {files}:
    batch = min(size, {files} - start)
    print(json.dumps({{"batch": batch}}), flush=True)
    held = [bytearray({mb} * 10**6) for _ in range(batch)]
    time.sleep(0.1)
    for _ in held:
        print(json.dumps({{"row": {{"seconds": 1.0, "text": str(start)}}}}), flush=True)
        start += 1
    size = min(2 * size, most)
"""


def worker(files: int, mb: int) -> list[str]:
    """Return the command of a worker that takes `mb` MB for each file of a batch and always doubles its batches."""
    return [sys.executable, "-c", WORKER.format(files=files, mb=mb)]


def test_a_batch_that_was_too_large_is_halved_and_no_result_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    results = list(transcribe_within_memory(worker(14, 50), 14, 180))
    assert [result.text for result in results if isinstance(result, FileTranscript)] == [
        str(number) for number in range(14)
    ]
    log = capsys.readouterr().err
    assert "out of memory with 4 clips" in log
    assert "going on with 2" in log


def test_a_single_clip_above_the_cap_is_an_error() -> None:
    with pytest.raises(UserError, match="--memory-mb 100: one clip takes more"):
        list(transcribe_within_memory(worker(3, 300), 3, 100))


def test_another_failure_is_passed_on() -> None:
    with pytest.raises(SystemExit) as caught:
        list(transcribe_within_memory([sys.executable, "-c", "raise SystemExit(2)"], 3, 500))
    assert caught.value.code == 2


def transcribe(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "eval.transcribe", *map(str, arguments), "--threads", "1"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_folder_in_batches_gives_the_texts_of_single_files(speech: Path, tmp_path: Path) -> None:
    shutil.copytree(speech / "train", tmp_path / "audio")
    (tmp_path / "audio" / "000003x.wav").write_text("not audio")
    single, batched = (
        transcribe(TEACHER, tmp_path / "audio", "--format", "json", *options) for options in ((), ("--memory-mb", 3000))
    )
    for finished in (single, batched):
        assert finished.returncode == 1, finished.stderr
        assert "000003x.wav: unreadable" in finished.stderr
        assert "1 of 17 files could not be read" in finished.stderr
    single_rows, batched_rows = (
        [json.loads(line) for line in finished.stdout.splitlines()] for finished in (single, batched)
    )
    files = sorted(str(file) for file in (tmp_path / "audio").glob("*.flac"))
    assert [row["audio"] for row in batched_rows] == files
    assert [row["text"] for row in single_rows] == [row["text"] for row in batched_rows]
    assert len({row["text"] for row in single_rows}) > 10


def test_a_cap_below_the_model_is_one_line(speech: Path) -> None:
    finished = transcribe(TEACHER, speech / "test", "--memory-mb", 60)
    assert finished.returncode == 2
    assert "error: --memory-mb 60: one clip takes more" in finished.stderr
    assert "Traceback" not in finished.stderr


def touch_files(folder: Path, *files: str) -> Path:
    """Create empty files in a folder; return the folder."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def test_the_artefact_is_chosen_among_those_in_the_folder(tmp_path: Path) -> None:
    onnx = [f"onnx/{part}{suffix}.onnx" for part in ("encoder_model", "decoder_model_merged")
            for suffix in ("", "_quantized")]  # fmt: skip
    both = touch_files(tmp_path, *onnx, "ctranslate2-int8/model.bin", "model.safetensors")
    assert list(available_artefacts(both)) == [
        ("onnx", "fp32"),
        ("onnx", "int8"),
        ("ctranslate2", "int8"),
        ("torch", "fp32"),
    ]
    assert choose_artefact(both, None, None) == ("onnx", "fp32")
    assert choose_artefact(both, None, "int8") == ("onnx", "int8")
    assert choose_artefact(both, "ctranslate2", None) == ("ctranslate2", "int8")
    assert choose_artefact(both, "torch", None) == ("torch", "fp32")
    with pytest.raises(UserError, match="expected weights for openvino int8, found onnx fp32, onnx int8, ctranslate2"):
        choose_artefact(both, "openvino", "int8")


def test_a_folder_without_any_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected weights for any runtime, found none"):
        choose_artefact(tmp_path, None, None)
    with pytest.raises(UserError, match="expected a model folder, found none"):
        choose_artefact(tmp_path / "nowhere", None, None)


def test_choosing_an_export_imports_no_torch(tmp_path: Path) -> None:
    folder = touch_files(tmp_path, "onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx")
    program = (
        f"import sys, eval.transcribe; from pathlib import Path; from eval.runtimes.registry import choose_artefact; "
        f"choose_artefact(Path({str(folder)!r}), None, None); assert not {{'torch', 'transformers'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text"])
def test_broken_safetensors_are_one_line(tmp_path: Path, damage: str) -> None:
    shutil.copytree(TEACHER, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    if damage != "missing":
        weights.write_bytes(
            {"empty": b"", "cut": content[: len(content) // 2], "text": b"version https://git-lfs"}[damage]
        )
    with pytest.raises(UserError, match="expected a Whisper checkpoint of config") as caught:
        load_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_folders_are_read_in_order_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    for name in ("b/2.WAV", "b/1.flac", "b/notes.txt", "a.opus"):
        touch_files(tmp_path, name)
    assert find_audio_files([tmp_path / "b", tmp_path / "a.opus"]) == [
        tmp_path / "b" / "1.flac", tmp_path / "b" / "2.WAV", tmp_path / "a.opus"
    ]  # fmt: skip
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected audio files in this folder, found none"):
        find_audio_files([tmp_path / "empty"])
