"""Cutting layers, saving a student, and counting its parameters."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from distill.models.cutting import cut_layers, spaced_layers
from distill.models.model_size import count_parameters_m
from distill.models.saving import save_model
from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import UserError
from recipes.core.whisper_shape import WhisperShape
from tests.conftest import TEACHER


@given(st.integers(1, 48).flatmap(lambda depth: st.tuples(st.just(depth), st.integers(1, depth))))
def test_layers_are_distinct_ordered_and_maximally_spaced(depths: tuple[int, int]) -> None:
    depth, kept = depths
    layers = spaced_layers(depth, kept, "decoder")
    assert len(set(layers)) == kept
    assert layers == sorted(layers)
    assert layers[-1] == depth - 1
    if kept > 1:
        assert layers[0] == 0
        gaps = [after - before for before, after in pairwise(layers)]
        assert max(gaps) - min(gaps) <= 1


def test_too_many_layers_are_refused() -> None:
    with pytest.raises(UserError, match=r"student.decoder_layers: expected 1 to 4, .* found 5"):
        spaced_layers(4, 5, "decoder")


def test_a_full_copy_is_the_teacher() -> None:
    teacher = load_model(TEACHER)
    student = cut_layers(teacher, [0, 1, 2, 3], [0, 1, 2, 3])
    mel, tokens = torch.randn(1, 80, 700), torch.tensor([[257, 258, 260, 264]])
    with torch.no_grad():
        assert torch.equal(
            teacher(input_features=mel, decoder_input_ids=tokens).logits,
            student(input_features=mel, decoder_input_ids=tokens).logits,
        )


def test_a_cut_keeps_encoder_and_layers_and_saves_all_files_that_other_loaders_read(tmp_path: Path) -> None:
    teacher = load_model(TEACHER)
    student = cut_layers(teacher, [0, 1, 2, 3], [0, 3])
    save_model(student, tmp_path, processors=TEACHER, drop_alignment_heads=True)
    loaded = load_model(tmp_path)
    assert loaded.config.decoder_layers == 2
    assert torch.equal(loaded.model.decoder.layers[1].fc1.weight, teacher.model.decoder.layers[3].fc1.weight)
    assert torch.equal(loaded.model.encoder.conv1.weight, teacher.model.encoder.conv1.weight)
    assert loaded.proj_out.weight.data_ptr() == loaded.model.decoder.embed_tokens.weight.data_ptr()
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    for name in (
        "tokenizer.json",
        "preprocessor_config.json",
        "vocab.json",
        "merges.txt",
        "generation_config.json",
    ):
        assert (tmp_path / name).is_file(), name


def test_a_cut_decoder_does_not_get_the_teachers_alignment_heads(tmp_path: Path) -> None:
    processors = tmp_path / "teacher"
    processors.mkdir()
    for file in TEACHER.iterdir():
        if file.suffix == ".json":
            (processors / file.name).write_text(file.read_text())
    generation = json.loads((processors / "generation_config.json").read_text())
    (processors / "generation_config.json").write_text(
        json.dumps(generation | {"alignment_heads": [[0, 1], [2, 0], [3, 2]]})
    )
    student = cut_layers(load_model(TEACHER), [0, 1, 2, 3], [0, 3])
    save_model(student, tmp_path / "out", processors=processors, drop_alignment_heads=True)
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert saved == generation
    save_model(student, tmp_path / "whole", processors=processors)
    assert "alignment_heads" in json.loads((tmp_path / "whole" / "generation_config.json").read_text())


def test_estimated_parameters_equal_the_model() -> None:
    model = load_model(TEACHER)
    shape = WhisperShape.from_config(json.loads((TEACHER / "config.json").read_text()))
    assert count_parameters_m(model) == {
        "encoder": round(shape.encoder_parameters / 1e6, 3),
        "decoder": round(shape.decoder_parameters / 1e6, 3),
    }
