"""Pruned feed-forward blocks: exactly the model with those neurons at zero, and really smaller."""

from pathlib import Path

import pytest
import torch

from distill.compress.prune import prune
from distill.student import encoder_macs_m, parameters_m, save_model
from eval.runtimes.torch import load_model
from recipes.compression import LowRank, Prune
from recipes.errors import UserError
from tests.conftest import TEACHER
from tests.unit.models import demo_student
from tests.unit.test_low_rank import Noise, compressed, states

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_is_pruned_equals_the_whole_model_with_those_neurons_at_zero(tmp_path: Path) -> None:
    model = demo_student()
    made, report = prune(model, Prune(ffn_width=400), Noise(model))
    for mine, whole in zip(made.model.encoder.layers, model.model.encoder.layers, strict=True):
        kept = (whole.fc1.weight[:, None] == mine.fc1.weight[None]).all(2).any(1)
        assert int(kept.sum()) == 400
        with torch.no_grad():
            whole.fc2.weight[:, ~kept] = 0
    torch.testing.assert_close(states(made), states(model), atol=1e-5, rtol=1e-5)
    assert all(0 < block["kept"] < 1 for block in report.values())
    whole_model = demo_student()
    assert parameters_m(made)["encoder"] < parameters_m(whole_model)["encoder"]
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
    made, _ = prune(model, Prune(ffn_width=168), Noise(model))
    for mine, whole in zip(made.model.encoder.layers, model.model.encoder.layers, strict=True):
        assert torch.equal(mine.fc1.weight, torch.cat([whole.fc1.weight[:100], whole.fc1.weight[700:]]))


def test_full_width_changes_nothing() -> None:
    model = demo_student()
    made, _ = prune(model, Prune(ffn_width=768), Noise(model))
    assert torch.equal(states(made), states(model))


def test_too_wide_and_pairs_are_refused() -> None:
    model = demo_student()
    with pytest.raises(UserError, match=r"compress.prune.ffn_width: expected 1 to 768, .* found 769"):
        prune(model, Prune(ffn_width=769), Noise(model))
    with pytest.raises(UserError, match=r"compress.prune: .* prune it before"):
        prune(compressed(model, LowRank(preset="fast")), Prune(ffn_width=100), Noise(model))


def test_a_pruned_student_is_factored_further() -> None:
    model = demo_student()
    narrow, _ = prune(model, Prune(ffn_width=384), Noise(model))
    made = compressed(narrow, LowRank(preset="fast"))
    assert made.config.encoder_ffn_dim == 384
    assert made.model.encoder.layers[0].fc1[1].out_features == 384
    assert parameters_m(made)["encoder"] < parameters_m(narrow)["encoder"]
