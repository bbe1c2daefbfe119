"""Pruned feed-forward blocks: exactly the model with those neurons at zero, and really smaller."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distill.compression.low_rank import expand_pairs
from distill.compression.pruning import prune_model
from distill.exporters.export_source import ExportSource
from distill.exporters.exporter_registry import EXPORTERS
from distill.exporters.folder_layout import write_layout
from distill.models.model_size import count_parameters_m, encoder_macs_m
from distill.models.saving import save_model
from eval.runtimes.registry import open_runtime
from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import UserError
from recipes.schema.compress_section import LowRankOptions, PruneOptions
from recipes.schema.export_section import Precision
from tests.conftest import TEACHER
from tests.unit.distill.compression.test_low_rank import compressed, states
from tests.unit.models import Noise, demo_student, parity_db, token_steps, torch_steps

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_is_pruned_equals_the_whole_model_with_those_neurons_at_zero(tmp_path: Path) -> None:
    model = demo_student()
    made, report = prune_model(model, PruneOptions(ffn_width=400), Noise(model))
    for mine, whole in zip(made.model.encoder.layers, model.model.encoder.layers, strict=True):
        kept = (whole.fc1.weight[:, None] == mine.fc1.weight[None]).all(2).any(1)
        assert int(kept.sum()) == 400
        with torch.no_grad():
            whole.fc2.weight[:, ~kept] = 0
    torch.testing.assert_close(states(made), states(model), atol=1e-5, rtol=1e-5)
    assert all(0 < block["kept"] < 1 for block in report.values())
    whole_model = demo_student()
    assert count_parameters_m(made)["encoder"] < count_parameters_m(whole_model)["encoder"]
    assert encoder_macs_m(made) < encoder_macs_m(whole_model)
    save_model(made, tmp_path, processors=TEACHER)
    again = load_model(tmp_path)
    assert again.config.encoder_ffn_dim == 400
    assert torch.equal(states(again), states(made))


def test_the_neurons_that_matter_least_go() -> None:
    model = demo_student()
    with torch.no_grad():
        for layer in model.model.encoder.layers:
            layer.fc2.weight[:, 100:700] = 0
    made, _ = prune_model(model, PruneOptions(ffn_width=168), Noise(model))
    for mine, whole in zip(made.model.encoder.layers, model.model.encoder.layers, strict=True):
        assert torch.equal(mine.fc1.weight, torch.cat([whole.fc1.weight[:100], whole.fc1.weight[700:]]))


def test_full_width_changes_nothing() -> None:
    model = demo_student()
    made, _ = prune_model(model, PruneOptions(ffn_width=768), Noise(model))
    assert torch.equal(states(made), states(model))


def test_too_wide_and_pairs_are_refused() -> None:
    model = demo_student()
    with pytest.raises(UserError, match=r"compress.prune.ffn_width: expected 1 to 768, .* found 769"):
        prune_model(model, PruneOptions(ffn_width=769), Noise(model))
    with pytest.raises(UserError, match=r"compress.prune: .* prune it before"):
        prune_model(compressed(model, LowRankOptions(preset="fast")), PruneOptions(ffn_width=100), Noise(model))


def test_pruned_heads_equal_the_whole_model_with_their_columns_at_zero(tmp_path: Path) -> None:
    model = demo_student()
    made, report = prune_model(model, PruneOptions(heads=2), Noise(model))
    for block, whole in zip(report.values(), model.model.encoder.layers, strict=True):
        (gone,) = {0, 1, 2} - set(block["heads"])
        with torch.no_grad():
            whole.self_attn.out_proj.weight[:, 64 * gone : 64 * (gone + 1)] = 0
    torch.testing.assert_close(states(made), states(model), atol=1e-5, rtol=1e-5)
    assert count_parameters_m(made)["encoder"] < count_parameters_m(demo_student())["encoder"]
    assert encoder_macs_m(made) < encoder_macs_m(model)
    save_model(made, tmp_path, processors=TEACHER)
    again = load_model(tmp_path)
    assert again.model.encoder.layers[0].self_attn.num_heads == 2
    assert torch.equal(states(again), states(made))
    torch.testing.assert_close(states(expand_pairs(made, "test")), states(made), atol=1e-5, rtol=1e-5)


def test_the_head_that_adds_nothing_goes() -> None:
    model = demo_student()
    with torch.no_grad():
        for number, layer in enumerate(model.model.encoder.layers):
            layer.self_attn.v_proj.weight[64 * (number % 3) : 64 * (number % 3 + 1)] = 0
            layer.self_attn.v_proj.bias[64 * (number % 3) : 64 * (number % 3 + 1)] = 0
    _, report = prune_model(model, PruneOptions(heads=2), Noise(model))
    assert [set(block["heads"]) for block in report.values()] == [{0, 1, 2} - {number % 3} for number in range(4)]
    assert [block["kept"] for block in report.values()] == [1.0] * 4


def test_the_layer_that_turns_nothing_goes() -> None:
    model = demo_student()
    with torch.no_grad():
        for part in (model.model.encoder.layers[1].self_attn.out_proj, model.model.encoder.layers[1].fc2):
            part.weight.zero_()
            part.bias.zero_()
    made, report = prune_model(model, PruneOptions(encoder_layers=3), Noise(model))
    assert [block["kept"] for block in report.values()] == [True, False, True, True]
    torch.testing.assert_close(states(made), states(model), atol=1e-5, rtol=1e-5)


def test_decoder_neurons_are_those_of_the_whole_model() -> None:
    model = demo_student()
    made, report = prune_model(model, PruneOptions(decoder_ffn_width=300), Noise(model))
    for mine, whole in zip(made.model.decoder.layers, model.model.decoder.layers, strict=True):
        kept = (whole.fc1.weight[:, None] == mine.fc1.weight[None]).all(2).any(1)
        assert int(kept.sum()) == 300
        with torch.no_grad():
            whole.fc2.weight[:, ~kept] = 0
    mel, steps = Noise(model).mels[0], token_steps(model, 1, [4, 1, 1])
    for found, expected in zip(torch_steps(made, mel, steps), torch_steps(model, mel, steps), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert sorted(report) == ["model.decoder.layers.0", "model.decoder.layers.1"]
    assert count_parameters_m(made)["decoder"] < count_parameters_m(model)["decoder"]


def test_everything_at_once_is_exported_whole(tmp_path: Path) -> None:
    model = demo_student()
    section = PruneOptions(encoder_layers=3, heads=2, ffn_width=384, decoder_ffn_width=384)
    made, _ = prune_model(model, section, Noise(model))
    made = compressed(made, LowRankOptions(preset="fast"))
    save_model(made, tmp_path / "student", processors=TEACHER)
    write_layout(tmp_path / "student", tmp_path / "model")
    student = ExportSource(load_model(tmp_path / "student"), tmp_path / "student", [])
    precisions: dict[str, Precision] = {"onnx": "fp32", "openvino": "fp16"}
    for runtime, precision in precisions.items():
        EXPORTERS[runtime](student, tmp_path / "model", [precision])
        opened = open_runtime(runtime, tmp_path / "model", precision, 1)
        assert parity_db(made, opened, 10) > {"fp32": 80, "fp16": 45}[precision]
    torch.testing.assert_close(states(expand_pairs(made, "test")), states(made), atol=1e-4, rtol=1e-4)


def test_a_pruned_student_is_factored_further() -> None:
    model = demo_student()
    narrow, _ = prune_model(model, PruneOptions(ffn_width=384), Noise(model))
    made = compressed(narrow, LowRankOptions(preset="fast"))
    assert made.config.encoder_ffn_dim == 384
    assert made.model.encoder.layers[0].fc1[1].out_features == 384
    assert count_parameters_m(made)["encoder"] < count_parameters_m(narrow)["encoder"]
