"""Folder layout: missing files are derived, and contradicting ones refused."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GenerationConfig, WhisperFeatureExtractor, WhisperProcessor

from distill.exporters.folder_layout import complete_onnx, write_layout
from recipes.core.errors import UserError
from recipes.core.model_folder import PROCESSOR_FILES
from tests.conftest import TEACHER, VOCABULARIES

TEXTS = (
    "one two three",
    "Zürich, naïve — 3.5 %",
    "l'été où ça commence",
    "  spaces\nand lines ",
    "日本語 и русский",
    "🙂",
)
MINIMAL = (
    "config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip
"""The files that transformers 5 saves of a model and its processor."""
DERIVED = ("preprocessor_config.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**read(path), **values}))


@dataclass
class Case:
    whole: Path
    """A complete checkpoint without weights."""
    processor: WhisperProcessor
    minimal: Path
    """What transformers 5 saves of it."""
    folder: Path
    """What `write_layout` makes of `minimal`."""


@pytest.fixture(scope="module", params=["demo", "english", "multilingual", "large-v3"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Return a case for the demo's vocabulary and for the three of OpenAI."""
    root = tmp_path_factory.mktemp(request.param)
    original = TEACHER if request.param == "demo" else VOCABULARIES / request.param
    if not original.is_dir():
        pytest.skip(f"{original} is not there")
    whole, minimal, folder = root / "whole", root / "minimal", root / "model"
    whole.mkdir()
    for name in PROCESSOR_FILES:
        if (original / name).is_file():
            shutil.copyfile(original / name, whole / name)
    features = read(original / "preprocessor_config.json")
    sizes = {
        "vocab_size": len(read(original / "vocab.json")),
        "num_mel_bins": features["feature_size"],
        "max_source_positions": features["nb_max_frames"] // 2,
    }
    (whole / "config.json").write_text(json.dumps({**read(TEACHER / "config.json"), **sizes}))
    processor = WhisperProcessor.from_pretrained(whole)
    processor.save_pretrained(minimal)
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(whole / name, minimal / name)
    assert sorted(file.name for file in minimal.iterdir()) == sorted(MINIMAL)
    write_layout(minimal, folder)
    return Case(whole, processor, minimal, folder)


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """Return a folder with the demo teacher's files except the weights, which tests damage."""
    folder = tmp_path / "student"
    folder.mkdir()
    for name in ("config.json", *PROCESSOR_FILES):
        if (TEACHER / name).is_file():
            shutil.copyfile(TEACHER / name, folder / name)
    return folder


def test_what_transformers_5_saves_is_completed(case: Case) -> None:
    assert {file.name for file in case.folder.iterdir()} == {*MINIMAL, *DERIVED}
    for name in MINIMAL:
        assert (case.folder / name).read_bytes() == (case.minimal / name).read_bytes()
    # Derived files equal those of the complete checkpoint.
    assert read(case.folder / "vocab.json") == read(case.whole / "vocab.json")
    assert (case.folder / "merges.txt").read_text() == (case.whole / "merges.txt").read_text()
    derived = WhisperFeatureExtractor.from_pretrained(case.folder).to_dict()
    assert derived == case.processor.feature_extractor.to_dict()


def test_derived_files_agree_with_the_tokenizer(case: Case) -> None:
    tokenizer = Tokenizer.from_file(str(case.folder / "tokenizer.json"))
    vocabulary, added = read(case.folder / "vocab.json"), read(case.folder / "added_tokens.json")
    assert vocabulary | added == tokenizer.get_vocab()
    assert list(vocabulary.values()) == sorted(vocabulary.values())
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    roles = read(case.folder / "special_tokens_map.json")
    assert set(roles.pop("additional_special_tokens")) == special
    assert set(roles.values()) == {"<|endoftext|>"}
    assert "<|0.00|>" in added
    assert "<|0.00|>" not in special


def test_transformers_reads_the_same_ids(case: Case) -> None:
    same_ids(case.processor.tokenizer, WhisperProcessor.from_pretrained(case.folder).tokenizer)


def test_transformers_reads_the_same_ids_through_a_derived_tokenizer_config(student: Path, tmp_path: Path) -> None:
    (student / "tokenizer_config.json").unlink()
    write_layout(student, tmp_path / "model")
    # No other file has the language of the prompt that transformers adds to the text.
    same_ids(
        AutoTokenizer.from_pretrained(TEACHER),
        AutoTokenizer.from_pretrained(tmp_path / "model"),
        add_special_tokens=False,
    )


def same_ids(before: Any, after: Any, **options: bool) -> None:
    for text in TEXTS:
        ids = before(text, **options).input_ids
        assert after(text, **options).input_ids == ids
        assert after.decode(ids, skip_special_tokens=True) == before.decode(ids, skip_special_tokens=True)
    assert after.convert_tokens_to_ids("<|notimestamps|>") == before.convert_tokens_to_ids("<|notimestamps|>")
    assert after.eos_token_id == before.eos_token_id


def test_a_complete_folder_is_copied_unchanged(student: Path, tmp_path: Path) -> None:
    write_layout(student, tmp_path / "model")
    for file in student.iterdir():
        assert (tmp_path / "model" / file.name).read_bytes() == file.read_bytes()


def test_merges_may_be_strings_or_lists(student: Path, tmp_path: Path) -> None:
    model = read(student / "tokenizer.json")["model"]
    (student / "merges.txt").unlink()
    for number, merges in enumerate((["a b", "ab c"], [["a", "b"], ["ab", "c"]])):
        change(student / "tokenizer.json", model={**model, "merges": merges})
        folder = tmp_path / f"model-{number}"
        write_layout(student, folder)
        assert (folder / "merges.txt").read_text() == "#version: 0.2\na b\nab c\n"


def test_missing_generation_settings_are_derived_from_the_tokenizer(student: Path, tmp_path: Path) -> None:
    whole = read(student / "generation_config.json")
    derivable = ("suppress_tokens", "no_timestamps_token_id", "lang_to_id", "task_to_id")
    reduced = {key: value for key, value in whole.items() if key not in (*derivable, "begin_suppress_tokens")}
    (student / "generation_config.json").write_text(json.dumps(reduced))
    write_layout(student, tmp_path / "model")
    assert read(tmp_path / "model" / "generation_config.json") == {**whole, "begin_suppress_tokens": []}


def test_graphs_get_the_files_that_optimum_and_transformers_js_read(student: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_layout(student, folder)
    complete_onnx(folder)
    assert not (folder / "onnx").exists()
    (folder / "onnx").mkdir()
    (folder / "onnx" / "decoder_model_merged.onnx").touch()
    complete_onnx(folder)
    assert (folder / "config.json").read_bytes() == (student / "config.json").read_bytes()
    assert GenerationConfig.from_pretrained(folder, subfolder="onnx").is_multilingual
    (folder / "onnx" / "encoder_model.onnx_data").touch()
    complete_onnx(folder)
    settings = read(folder / "config.json")["transformers.js_config"]
    assert settings == {"use_external_data_format": {"encoder_model.onnx": 1}}


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
def test_a_missing_file_is_named(student: Path, tmp_path: Path, name: str) -> None:
    (student / name).unlink()
    with pytest.raises(UserError, match=rf"expected a Whisper checkpoint with {name}, found none"):
        write_layout(student, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_without_any_feature_extractor_is_refused(student: Path, tmp_path: Path) -> None:
    (student / "preprocessor_config.json").unlink()
    (student / "processor_config.json").write_text('{"processor_class": "WhisperProcessor"}')
    with pytest.raises(UserError, match=r"expected preprocessor_config.json, or processor_config.json with"):
        write_layout(student, tmp_path / "model")


def test_a_broken_file_is_named(student: Path, tmp_path: Path) -> None:
    (student / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer.json: expected a JSON file"):
        write_layout(student, tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("preprocessor_config.json", {"feature_size": 128}, "expected feature_size 80, the num_mel_bins .* found 128"),
        ("config.json", {"num_mel_bins": 128}, "expected feature_size 128, the num_mel_bins .* found 80"),
        ("preprocessor_config.json", {"nb_max_frames": 3000}, "expected nb_max_frames 700, .* found 3000"),
        ("config.json", {"vocab_size": 500}, "expected at most 500 tokens, .* found 586"),
        ("config.json", {"vocab_size": None}, "found no vocab_size"),
        ("vocab.json", {"zzz": 4}, "expected the ids of tokenizer.json, found 1 others, such as 'zzz'"),
        ("generation_config.json", {"alignment_heads": [[1, 2], [4, 0]]}, r"within the 4 decoder .* found \[4, 0\]"),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    student: Path, tmp_path: Path, name: str, values: dict[str, object], message: str
) -> None:
    change(student / name, **values)
    with pytest.raises(UserError, match=message) as raised:
        write_layout(student, tmp_path / "model")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "model").exists()
