"""Invalid input ends in a one-line error and exit status 2; unusable audio is listed and skipped."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TEACHER
from tests.stages.conftest import Run, sottovoce, write_recipe


@pytest.fixture
def recipe(tmp_path: Path, speech: Path) -> Path:
    return write_recipe(tmp_path, speech)


def refused(run: Run, *arguments: str) -> str:
    done = run(*sottovoce(*arguments))
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "Traceback" not in line
    return line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=1", "train.stepz: unknown key"),
        ("train.steps=soon", "train.steps: Input should be a valid integer"),
        ("train.steps", "expected section.key=value"),
        ("corpus.sources=[{audiofolder: nowhere}]", "corpus.sources.0.audiofolder: expected a folder at nowhere"),
        ("corpus.sources=[{synthesis: {sentences: nowhere.txt}}]", "expected a file at nowhere.txt"),
        ("budget.device=nowhere.yaml", "budget.device: expected a file at nowhere.yaml"),
        ("teacher.model=./nowhere", "teacher.model: expected a folder at nowhere"),
        ("student.decoder_layers=9", "student.decoder_layers: expected 1 to 4"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_wrong_recipe_is_refused_before_anything_runs(
    recipe: Path, run: Run, override: str, message: str, command: str
) -> None:
    assert message in refused(run, command, str(recipe), override)
    assert not (recipe.parent / "runs").exists()


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.safetensors"])
def test_a_teacher_without_a_file_is_refused(recipe: Path, run: Run, tmp_path: Path, missing: str) -> None:
    shutil.copytree(TEACHER, tmp_path / "teacher", ignore=shutil.ignore_patterns(missing))
    assert missing in refused(run, "run", str(recipe), f"teacher.model={tmp_path / 'teacher'}")


def test_an_empty_corpus_is_refused_inside_the_stage(recipe: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run(*sottovoce("run", str(recipe), f"corpus.sources=[{{audio: {tmp_path / 'empty'}}}]"))
    assert done.returncode == 2
    assert "expected audio under" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_inside_a_launched_stage_keeps_its_status(recipe: Path, run: Run) -> None:
    done = run(*sottovoce("run", str(recipe), "teacher.language=xx", "--until", "labels"))
    assert done.returncode == 2
    assert "teacher.language: expected one of en" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_transcription_model_or_audio_is_one_line(run: Run) -> None:
    assert "expected a model folder" in refused(run, "transcribe", "nowhere", "a.wav")


def changed(folder: Path, file: str, **values: object) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "tokenizer.json: expected a tokenizer"),
    "broken tokenizer": (lambda model: (model / "tokenizer.json").write_text("{"), "tokenizer.json: expected"),
    "no graphs": (lambda model: shutil.rmtree(model / "onnx"), "expected"),
    "truncated graph": (lambda model: os.truncate(model / "onnx" / "encoder_model.onnx", 9999), "encoder_model.onnx"),
    "another model's mel bins": (lambda model: changed(model, "config.json", num_mel_bins=128), "num_mel_bins 128"),
    "another model's window": (
        lambda model: changed(model, "config.json", max_source_positions=1500), "frames 3000"
    ),
    "another model's vocabulary": (lambda model: changed(model, "config.json", vocab_size=51865), "vocab_size 51865"),
    "two mel counts": (
        lambda model: changed(model, "preprocessor_config.json", feature_size=128), "expected feature_size 80"
    ),
    "settings that are no object": (lambda model: (model / "config.json").write_text("[1]"), "config.json: expected"),
    "settings without a key": (
        lambda model: (model / "generation_config.json").write_text("{}"), "decoder_start_token_id"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_mixed_up_export_is_one_line(finished: Path, run: Run, tmp_path: Path, damage: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(finished.parent / "runs" / "small" / "export" / "model", model)
    apply_damage, message = DAMAGES[damage]
    apply_damage(model)
    assert message in refused(run, "transcribe", str(model), "a.wav", "--runtime", "onnx", "--precision", "fp32")


def test_weights_of_another_shape_are_one_line(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TEACHER, model)
    changed(model, "config.json", decoder_ffn_dim=96)
    done = run(*sottovoce("transcribe", str(model), "a.wav", "--runtime", "torch"))
    assert done.returncode == 2
    assert "found weights of other shapes than config.json says" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_unreadable_audio_is_listed_and_skipped(recipe: Path, run: Run, speech: Path, tmp_path: Path) -> None:
    shutil.copytree(speech, tmp_path / "speech")
    train = tmp_path / "speech" / "train"
    (train / "text.wav").write_text("not audio")
    (train / "empty.flac").write_bytes(b"")
    broken = ["text.wav", "empty.flac", "absent.flac"]
    with (train / "metadata.jsonl").open("a") as file:
        file.writelines(json.dumps({"file_name": name, "text": "x"}) + "\n" for name in broken)
    source = f"corpus.sources=[{{audiofolder: {tmp_path / 'speech'}, name: spoken}}]"
    done = run(*sottovoce("run", str(recipe), source, "corpus.max_error_rate=0.2", "--until", "corpus"))
    assert done.returncode == 0, done.stderr
    folder = recipe.parent / "runs" / "small" / "corpus"
    reasons = {Path(item["path"]).name: item["reason"] for item in json.loads((folder / "refused.json").read_text())}
    assert reasons.keys() == set(broken)
    assert reasons["empty.flac"] == "empty file"
    assert reasons["absent.flac"] == "no such file"
    assert json.loads((folder / "stage.json").read_text())["counts"] == {"utterances": 24, "refused": 3, "packed": 0}
    strict = run(*sottovoce("run", str(recipe), source, "corpus.max_error_rate=0.05", "--until", "corpus"))
    assert strict.returncode == 1
    assert "3 of 27 files cannot be used" in strict.stderr


def test_check_estimates_a_hub_teacher_without_the_network(run: Run, speech: Path) -> None:
    source = f"corpus.sources=[{{audiofolder: {speech}}}]"
    done = run(*sottovoce("check", "recipes/large-v3-en/recipe.yaml", source))
    assert done.returncode == 0, done.stderr
    assert "teacher 1543.5 M parameters: encoder 637.0 M in 32 layers, decoder 906.5 M in 32" in done.stdout
    assert "student 756.4 M" in done.stdout, "the published size of distil-large-v3"


def test_a_hub_teacher_that_cannot_be_fetched_is_one_clear_line(recipe: Path, run: Run) -> None:
    done = run(*sottovoce("run", str(recipe), "teacher.model=nobody/no-such-model", "--until", "student"))
    assert done.returncode == 2
    assert "the download from the Hub failed" in done.stderr
    assert "Traceback" not in done.stderr
