"""Pruning: equal to the model with the pruned weights at zero, and smaller."""

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


def test_pruned_neurons_equal_the_full_model_with_those_neurons_at_zero(tmp_path: Path) -> None:
    model = demo_student()
    pruned, report = prune_model(model, PruneOptions(ffn_width=400), Noise(model))
    for small, full_layer in zip(pruned.model.encoder.layers, model.model.encoder.layers, strict=True):
        kept = (full_layer.fc1.weight[:, None] == small.fc1.weight[None]).all(2).any(1)
        assert int(kept.sum()) == 400
        with torch.no_grad():
            full_layer.fc2.weight[:, ~kept] = 0
    torch.testing.assert_close(states(pruned), states(model), atol=1e-5, rtol=1e-5)
    assert all(0 < block["kept"] < 1 for block in report.values())
    full = demo_student()
    assert count_parameters_m(pruned)["encoder"] < count_parameters_m(full)["encoder"]
    assert encoder_macs_m(pruned) < encoder_macs_m(full)
    save_model(pruned, tmp_path, processors=TEACHER)
    loaded = load_model(tmp_path)
    assert loaded.config.encoder_ffn_dim == 400
    assert torch.equal(states(loaded), states(pruned))


def test_the_neurons_that_matter_least_are_removed() -> None:
    model = demo_student()
    with torch.no_grad():
        for layer in model.model.encoder.layers:
            layer.fc2.weight[:, 100:700] = 0
    pruned, _ = prune_model(model, PruneOptions(ffn_width=168), Noise(model))
    for small, full_layer in zip(pruned.model.encoder.layers, model.model.encoder.layers, strict=True):
        assert torch.equal(small.fc1.weight, torch.cat([full_layer.fc1.weight[:100], full_layer.fc1.weight[700:]]))


def test_full_width_changes_nothing() -> None:
    model = demo_student()
    pruned, _ = prune_model(model, PruneOptions(ffn_width=768), Noise(model))
    assert torch.equal(states(pruned), states(model))


def test_too_large_widths_and_low_rank_pairs_are_refused() -> None:
    model = demo_student()
    with pytest.raises(UserError, match=r"compress.prune.ffn_width: expected 1 to 768, .* found 769"):
        prune_model(model, PruneOptions(ffn_width=769), Noise(model))
    with pytest.raises(UserError, match=r"compress.prune: .* prune it before"):
        prune_model(compressed(model, LowRankOptions(preset="fast")), PruneOptions(ffn_width=100), Noise(model))


def test_pruned_heads_equal_the_full_model_with_their_columns_at_zero(tmp_path: Path) -> None:
    model = demo_student()
    pruned, report = prune_model(model, PruneOptions(heads=2), Noise(model))
    for block, full_layer in zip(report.values(), model.model.encoder.layers, strict=True):
        (removed,) = {0, 1, 2} - set(block["heads"])
        with torch.no_grad():
            full_layer.self_attn.out_proj.weight[:, 64 * removed : 64 * (removed + 1)] = 0
    torch.testing.assert_close(states(pruned), states(model), atol=1e-5, rtol=1e-5)
    assert count_parameters_m(pruned)["encoder"] < count_parameters_m(demo_student())["encoder"]
    assert encoder_macs_m(pruned) < encoder_macs_m(model)
    save_model(pruned, tmp_path, processors=TEACHER)
    loaded = load_model(tmp_path)
    assert loaded.model.encoder.layers[0].self_attn.num_heads == 2
    assert torch.equal(states(loaded), states(pruned))
    torch.testing.assert_close(states(expand_pairs(pruned, "test")), states(pruned), atol=1e-5, rtol=1e-5)


def test_the_head_that_adds_nothing_is_removed() -> None:
    model = demo_student()
    with torch.no_grad():
        for number, layer in enumerate(model.model.encoder.layers):
            layer.self_attn.v_proj.weight[64 * (number % 3) : 64 * (number % 3 + 1)] = 0
            layer.self_attn.v_proj.bias[64 * (number % 3) : 64 * (number % 3 + 1)] = 0
    _, report = prune_model(model, PruneOptions(heads=2), Noise(model))
    assert [set(block["heads"]) for block in report.values()] == [{0, 1, 2} - {number % 3} for number in range(4)]
    assert [block["kept"] for block in report.values()] == [1.0] * 4


def test_the_layer_that_changes_nothing_is_removed() -> None:
    model = demo_student()
    with torch.no_grad():
        for part in (model.model.encoder.layers[1].self_attn.out_proj, model.model.encoder.layers[1].fc2):
            part.weight.zero_()
            part.bias.zero_()
    pruned, report = prune_model(model, PruneOptions(encoder_layers=3), Noise(model))
    assert [block["kept"] for block in report.values()] == [True, False, True, True]
    torch.testing.assert_close(states(pruned), states(model), atol=1e-5, rtol=1e-5)


def test_pruned_decoder_neurons_equal_the_full_model_with_those_neurons_at_zero() -> None:
    model = demo_student()
    pruned, report = prune_model(model, PruneOptions(decoder_ffn_width=300), Noise(model))
    for small, full_layer in zip(pruned.model.decoder.layers, model.model.decoder.layers, strict=True):
        kept = (full_layer.fc1.weight[:, None] == small.fc1.weight[None]).all(2).any(1)
        assert int(kept.sum()) == 300
        with torch.no_grad():
            full_layer.fc2.weight[:, ~kept] = 0
    mel, steps = Noise(model).mels[0], token_steps(model, 1, [4, 1, 1])
    for found, expected in zip(torch_steps(pruned, mel, steps), torch_steps(model, mel, steps), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert sorted(report) == ["model.decoder.layers.0", "model.decoder.layers.1"]
    assert count_parameters_m(pruned)["decoder"] < count_parameters_m(model)["decoder"]


def test_a_student_pruned_in_every_way_is_exported(tmp_path: Path) -> None:
    model = demo_student()
    section = PruneOptions(encoder_layers=3, heads=2, ffn_width=384, decoder_ffn_width=384)
    pruned, _ = prune_model(model, section, Noise(model))
    pruned = compressed(pruned, LowRankOptions(preset="fast"))
    save_model(pruned, tmp_path / "student", processors=TEACHER)
    write_layout(tmp_path / "student", tmp_path / "model")
    student = ExportSource(load_model(tmp_path / "student"), tmp_path / "student", [])
    precisions: dict[str, Precision] = {"onnx": "fp32", "openvino": "fp16"}
    for runtime, precision in precisions.items():
        EXPORTERS[runtime](student, tmp_path / "model", [precision])
        opened = open_runtime(runtime, tmp_path / "model", precision, 1)
        assert parity_db(pruned, opened, 10) > {"fp32": 80, "fp16": 45}[precision]
    torch.testing.assert_close(states(expand_pairs(pruned, "test")), states(pruned), atol=1e-4, rtol=1e-4)


def test_a_pruned_student_can_be_factored() -> None:
    model = demo_student()
    narrow, _ = prune_model(model, PruneOptions(ffn_width=384), Noise(model))
    pruned = compressed(narrow, LowRankOptions(preset="fast"))
    assert pruned.config.encoder_ffn_dim == 384
    assert pruned.model.encoder.layers[0].fc1[1].out_features == 384
    assert count_parameters_m(pruned)["encoder"] < count_parameters_m(narrow)["encoder"]
