"""Trimmed vocabulary: texts of kept tokens are tokenized as before, all others in bytes, and every file agrees."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import WhisperTokenizer, WhisperTokenizerFast

from data_prep.labels.label_store import Decoding, Label, TokenDistribution
from distill.compression.context import CompressionContext
from distill.compression.vocabulary_trimming import select_tokens, trim_vocabulary
from distill.compression.window_shortening import shorten_window
from distill.data.vocabulary_map import VocabularyMap
from distill.losses.distillation_loss import StoredDistribution, live_kl, stored_kl
from distill.models.random_weights import random_model
from distill.models.saving import copy_processors, save_model
from eval.runtimes.model_format import ModelFormat, load_tokenizer
from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import UserError
from recipes.core.whisper_shape import WHISPER_SHAPES
from recipes.schema.compress_section import VocabularyOptions, WindowOptions
from tests.conftest import ROOT, SPEECH, TEACHER, VOCABULARIES
from tests.unit.models import random_mel, random_whisper, token_steps, torch_steps

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["seventeen dollars and fifty cents", "go to the north east corner", "Repeat: ENTER six, two, nine"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder with Whisper's special tokens and merge rules learnt from this project's README."""
    folder = tmp_path_factory.mktemp("whole")
    copy_processors(TEACHER, folder)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator((ROOT / "README.md").read_text().splitlines(), trainer)
    trained, tokenizer = json.loads(bpe.to_str())["model"], json.loads((TEACHER / "tokenizer.json").read_text())
    shift = len(trained["vocab"]) - 256
    special = {token["content"]: token["id"] + shift for token in tokenizer["added_tokens"]}
    tokenizer["model"] |= {"vocab": trained["vocab"] | special, "merges": trained["merges"]}
    tokenizer["added_tokens"] = [token | {"id": special[token["content"]]} for token in tokenizer["added_tokens"]]
    for token in tokenizer["post_processor"]["special_tokens"].values():
        token["ids"] = [old + shift for old in token["ids"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in trained["merges"])]) + "\n"
    )
    generation = json.loads((folder / "generation_config.json").read_text())
    for key, value in generation.items():
        if key.endswith("token_id"):
            generation[key] = value + shift
        if key in ("lang_to_id", "task_to_id"):
            generation[key] = {name: old + shift for name, old in value.items()}
    generation["begin_suppress_tokens"] = [special["<|endoftext|>"]]
    generation["suppress_tokens"] = [
        trained["vocab"]["#"],
        trained["vocab"][trained["merges"][-1][0] + trained["merges"][-1][1]],
    ]
    (folder / "generation_config.json").write_text(json.dumps(generation))
    ids = {f"{name}_token_id": special["<|endoftext|>"] for name in ("eos", "bos", "pad")}
    model = random_whisper(
        vocab_size=len(tokenizer["model"]["vocab"]), num_mel_bins=80, max_source_positions=350,
        decoder_start_token_id=special["<|startoftranscript|>"], **ids,
    )  # fmt: skip
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def trimmed(whole: Path, folder: Path, tokens: int | None = None) -> Path:
    (processors := folder / "processors").mkdir(parents=True)
    copy_processors(whole, processors)
    model, report = trim_vocabulary(
        load_model(whole), VocabularyOptions(tokens=tokens), CompressionContext([], TEXTS, 1, processors)
    )
    assert report["tokens"] == model.config.vocab_size == len(model.model.decoder.embed_tokens.weight)
    save_model(model, folder / "student", processors=processors)
    return folder / "student"


@pytest.fixture(scope="module")
def small(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trimmed(whole, tmp_path_factory.mktemp("small"))


def spelled(folder: Path, text: str) -> list[str]:
    return load_tokenizer(folder).encode(text, add_special_tokens=False).tokens


def test_texts_of_kept_tokens_are_tokenized_as_before(whole: Path, small: Path) -> None:
    assert load_tokenizer(small).get_vocab_size() < 0.8 * load_tokenizer(whole).get_vocab_size()
    for text in TEXTS:
        assert spelled(small, f" {text}") == spelled(whole, f" {text}")


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_is_encoded_and_decoded_to_itself(small: Path, text: str) -> None:
    tokenizer = load_tokenizer(small)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.sampled_from([*" ".join(TEXTS).split(), "recipe", "latency", "student"]), max_size=8))
def test_texts_whose_tokens_are_all_kept_have_the_same_tokens(whole: Path, small: Path, words: list[str]) -> None:
    before = spelled(whole, " ".join(words))
    if set(before) <= load_tokenizer(small).get_vocab().keys():
        assert spelled(small, " ".join(words)) == before


def test_more_tokens_are_added_in_the_order_of_the_merge_rules(whole: Path, tmp_path: Path) -> None:
    vocabulary = load_tokenizer(trimmed(whole, tmp_path, 500)).get_vocab()
    special = load_tokenizer(whole).get_vocab_size() - 900
    assert len(vocabulary) == 500 + special
    merges = json.loads((whole / "tokenizer.json").read_text())["model"]["merges"]
    letters = set("".join(TEXTS)) | {"Ġ"}
    commonest = ["".join(pair) for pair in merges if set("".join(pair)) <= letters][:40]
    assert set(commonest) <= vocabulary.keys()
    with pytest.raises(UserError, match=r"compress.vocabulary.tokens: expected at least \d+, .* found 260"):
        trimmed(whole, tmp_path / "few", 260)


def test_the_logits_of_kept_tokens_are_unchanged(whole: Path, small: Path) -> None:
    model, trimmed_model = load_model(whole), load_model(small)
    words = VocabularyMap.between(whole, small)
    assert words is not None
    steps = token_steps(trimmed_model, 1, [4, 1, 1])
    _, found = torch_steps(trimmed_model, random_mel(trimmed_model), steps)
    theirs = [words.teacher_ids_K[torch.from_numpy(tokens)].numpy() for tokens in steps]
    _, expected = torch_steps(model, random_mel(model), theirs)
    np.testing.assert_allclose(found, expected[..., words.teacher_ids_K.numpy()], atol=1e-5)
    assert VocabularyMap.between(whole, whole) is None


def test_every_file_has_the_new_ids(whole: Path, small: Path) -> None:
    before, after = (ModelFormat.load(folder, "en", "transcribe") for folder in (whole, small))
    names = [load_tokenizer(folder).id_to_token for folder in (whole, small)]
    assert [names[0](token) for token in before.prompt] == [names[1](token) for token in after.prompt]
    assert names[1](after.end) == "<|endoftext|>"
    assert [names[1](token) for token in after.suppress] == ["#"]  # the other suppressed token is not kept
    assert names[1](after.start_of_previous or 0) == "<|startofprev|>"
    assert load_model(small).generation_config.no_timestamps_token_id == after.no_timestamps
    assert load_model(small).config.eos_token_id == after.end
    assert json.loads((small / "vocab.json").read_text()) == load_tokenizer(small).get_vocab()
    fast, slow = WhisperTokenizerFast.from_pretrained(small), WhisperTokenizer.from_pretrained(small)
    for tokenizer in (fast, slow):
        assert tokenizer(" six two").input_ids[:3] == after.prompt[:3]


def test_timestamps_end_with_the_window(whole: Path, small: Path, tmp_path: Path) -> None:
    copy_processors(whole, processors := tmp_path)
    context = CompressionContext([], TEXTS, 1, processors)
    short, _ = shorten_window(load_model(whole), WindowOptions(seconds=4), context)
    trim_vocabulary(short, VocabularyOptions(), context)
    stamps = [token for token in load_tokenizer(processors).get_vocab() if token.startswith("<|") and "." in token]
    assert max(float(token.strip("<|>")) for token in stamps) == 4.0
    assert len(stamps) == 201
    assert load_tokenizer(small).token_to_id("<|6.40|>") is not None


def label(text: str, tokens: list[int]) -> Label:
    plain = Decoding(text, tokens, 4, 0.0, 0.0, ended=True)
    return Label("a", "s", "train", [], 1.0, [], [], None, "en", None, plain)


def test_labels_are_converted_to_the_students_ids(whole: Path, small: Path) -> None:
    words = VocabularyMap.between(whole, small)
    assert words is not None
    theirs, mine = load_tokenizer(whole), load_tokenizer(small)
    for text in (TEXTS[0], "latency of a recipe"):  # the latter has tokens that were left out
        tokens = theirs.encode(f" {text}").ids
        found = words.map_label(label(text, tokens)).plain.tokens
        assert mine.decode(found).strip() == text
        assert [mine.id_to_token(token) for token in found[:4]] == [theirs.id_to_token(token) for token in tokens[:4]]
        assert mine.id_to_token(found[-1]) == "<|endoftext|>"
        assert (len(found) == len(tokens)) == (text == TEXTS[0])


@pytest.mark.parametrize("kept", [8, None])
def test_stored_logits_are_of_the_students_tokens(whole: Path, small: Path, kept: int | None) -> None:
    """The whole store gives what the live teacher does, its other tokens left out; a part of it ids that differ."""
    words = VocabularyMap.between(whole, small)
    assert words is not None
    size, mine = len(words.student_ids_V), len(words.teacher_ids_K)
    teacher_NV = torch.randn(5, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    student_NK = torch.randn(5, mine, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    top = teacher_NV.topk(kept or size)
    rest = teacher_NV.exp().scatter(1, top.indices, 0).sum(1).log()
    told = words.map_distribution(TokenDistribution(top.indices.numpy(), top.values.numpy(), rest.numpy()))
    assert all(len(set(row)) == len(row) for row in told.ids_NK.tolist())
    stored = StoredDistribution(
        *(torch.from_numpy(np.asarray(part)) for part in (told.ids_NK.astype(np.int64), told.logits_NK, told.tail_N))
    )
    kl, gradient_NK = stored_kl(student_NK, stored, 1.0)
    assert torch.isfinite(kl)
    assert torch.isfinite(gradient_NK).all()
    expected, expected_NK = live_kl(student_NK, teacher_NV[:, words.teacher_ids_K], 1.0)
    if kept is None:
        torch.testing.assert_close(kl, expected)
        torch.testing.assert_close(gradient_NK, expected_NK)
    else:
        assert kl < expected + 1


@pytest.mark.skipif(not VOCABULARIES.is_dir() or not SPEECH.is_dir(), reason="needs the real vocabulary and speech")
def test_eight_thousand_tokens_of_the_real_vocabulary_encode_all_transcripts(tmp_path: Path) -> None:
    """Tokens are chosen by three sentences and the order of rules; all transcripts are decoded to themselves."""
    rows = [json.loads(line) for file in SPEECH.rglob("metadata.jsonl") for line in file.open()]
    texts = {row["text"] for row in rows if row.get("text")}
    assert len(select_tokens(VOCABULARIES / "multilingual", TEXTS, 8000)) == 8000
    copy_processors(VOCABULARIES / "multilingual", tmp_path)
    random_model(WHISPER_SHAPES["tiny"], VOCABULARIES / "multilingual", tmp_path / "whole")
    trim_vocabulary(
        load_model(tmp_path / "whole"), VocabularyOptions(tokens=8000), CompressionContext([], TEXTS, 1, tmp_path)
    )
    tokenizer = load_tokenizer(tmp_path)
    assert len(texts) > 3000
    assert all(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text for text in texts)
