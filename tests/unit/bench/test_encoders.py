"""Helpers of the compression benchmarks: magnitude pruning, pairs of fixed rank, encoders timed in turn."""

import numpy as np
import pytest
import torch

from distill.models.model_size import count_parameters_m, encoder_macs_m
from tests.bench.compress import prune_by_magnitude
from tests.bench.encoders import time_encoders
from tests.bench.ranks import encoder_linear_layers, with_random_pairs
from tests.conftest import TEACHER
from tests.unit.models import demo_student

pytestmark = pytest.mark.usefixtures("one_thread")


def test_magnitude_pruning_zeroes_the_smaller_half_and_nothing_else() -> None:
    model, sparse = demo_student(), prune_by_magnitude(TEACHER)
    before = {name: layer.weight.detach() for name, layer in encoder_linear_layers(model).items()}
    after = {name: layer.weight.detach() for name, layer in encoder_linear_layers(sparse).items()}
    pruned = {name: (before[name] != 0) & (after[name] == 0) for name in before}
    weights = sum(weight.numel() for weight in before.values())
    assert sum(int(mask.sum()) for mask in pruned.values()) == pytest.approx(weights / 2, rel=1e-3)
    largest_pruned = max(before[name][mask].abs().max() for name, mask in pruned.items())
    assert largest_pruned <= min(before[name][~mask & (before[name] != 0)].abs().min() for name, mask in pruned.items())
    original = model.state_dict()
    for name, value in sparse.state_dict().items():
        if name in original and ".encoder." in name and name.removesuffix(".weight") not in before:
            assert torch.equal(value, original[name])
    assert count_parameters_m(sparse)["encoder"] == count_parameters_m(model)["encoder"]
    assert all(torch.equal(after[name][~mask], before[name][~mask]) for name, mask in pruned.items())


def test_a_layer_is_replaced_only_if_its_pair_is_smaller() -> None:
    model = demo_student()
    half, quarter = with_random_pairs(model, 96), with_random_pairs(model, 48)
    assert {name.rpartition(".")[2] for name in half.config.low_rank} == {"fc1", "fc2"}
    assert set(quarter.config.low_rank) == set(encoder_linear_layers(model))
    assert set(quarter.config.low_rank.values()) == {48}
    # A pair of rank 48 has 48 (I + O) weights instead of I O: 18,432 instead of 36,864 in four attention projections,
    # and 46,080 instead of 147,456 in two feed-forward layers; 350 positions, 4 layers.
    saved = 350 * 4 * (4 * (36_864 - 18_432) + 2 * (147_456 - 46_080))
    assert encoder_macs_m(model) - encoder_macs_m(quarter) == pytest.approx(saved / 1e6, abs=0.2)


def test_encoders_are_timed_in_turn() -> None:
    calls: list[tuple[str, float]] = []

    class RecordingRuntime:
        def __init__(self, name: str):
            self.name = name

        def encode(self, mel: np.ndarray) -> None:
            calls.append((self.name, float(mel[0])))

    encoders = {
        "one": {"a": RecordingRuntime("one a"), "b": RecordingRuntime("one b")},
        "two": {"a": RecordingRuntime("two a")},
    }
    mels = {"one": [np.zeros(1), np.ones(1)], "two": [np.full(1, 2.0)]}
    rows = time_encoders(encoders, mels, runs=4)  # type: ignore[arg-type]
    assert [name for name, _ in calls] == ["one a", "one b", "two a"] * 7
    assert set(calls) == {("one a", 0.0), ("one b", 0.0), ("one a", 1.0), ("one b", 1.0), ("two a", 2.0)}
    for figure in ("p50_ms", "p50_ratio", "cpu_ms", "cpu_ratio"):
        assert {name: set(row[f"encoder_{figure}"]) for name, row in rows.items()} == {"one": {"a", "b"}, "two": {"a"}}
    assert rows["one"]["encoder_p50_ratio"] == {"a": 1.0, "b": 1.0}
