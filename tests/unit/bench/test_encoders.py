"""What the benches of compression compare: half of all weights really zero, ranks that are really narrower."""

import numpy as np
import pytest
import torch

from distill.models.model_size import count_parameters_m, encoder_macs_m
from tests.bench.compress import magnitude
from tests.bench.encoders import encoder_times
from tests.bench.ranks import at_rank, linear_layers
from tests.conftest import TEACHER
from tests.unit.models import demo_student

pytestmark = pytest.mark.usefixtures("one_thread")


def test_magnitude_takes_the_smaller_half_and_nothing_else() -> None:
    model, sparse = demo_student(), magnitude(TEACHER)
    before = {name: layer.weight.detach() for name, layer in linear_layers(model).items()}
    after = {name: layer.weight.detach() for name, layer in linear_layers(sparse).items()}
    gone = {name: (before[name] != 0) & (after[name] == 0) for name in before}
    weights = sum(weight.numel() for weight in before.values())
    assert sum(int(mask.sum()) for mask in gone.values()) == pytest.approx(weights / 2, rel=1e-3)
    largest_gone = max(before[name][mask].abs().max() for name, mask in gone.items())
    assert largest_gone <= min(before[name][~mask & (before[name] != 0)].abs().min() for name, mask in gone.items())
    kept = model.state_dict()
    for name, value in sparse.state_dict().items():
        if name in kept and ".encoder." in name and name.removesuffix(".weight") not in before:
            assert torch.equal(value, kept[name])
    assert count_parameters_m(sparse)["encoder"] == count_parameters_m(model)["encoder"]
    assert all(torch.equal(after[name][~mask], before[name][~mask]) for name, mask in gone.items())


def test_ranks_take_a_layer_only_where_a_pair_is_smaller() -> None:
    model = demo_student()
    half, quarter = at_rank(model, 96), at_rank(model, 48)
    assert {name.rpartition(".")[2] for name in half.config.low_rank} == {"fc1", "fc2"}
    assert set(quarter.config.low_rank) == set(linear_layers(model))
    assert set(quarter.config.low_rank.values()) == {48}
    # A pair of rank 48 has 48 (I + O) of I O weights: 18,432 of 36,864 and 46,080 of 147,456; 350 positions, 4 layers.
    less = 350 * 4 * (4 * (36_864 - 18_432) + 2 * (147_456 - 46_080))
    assert encoder_macs_m(model) - encoder_macs_m(quarter) == pytest.approx(less / 1e6, abs=0.2)


def test_encoders_are_asked_in_turn() -> None:
    asked: list[tuple[str, float]] = []

    class Asked:
        def __init__(self, name: str):
            self.name = name

        def encode(self, mel: np.ndarray) -> None:
            asked.append((self.name, float(mel[0])))

    encoders = {"one": {"a": Asked("one a"), "b": Asked("one b")}, "two": {"a": Asked("two a")}}
    mels = {"one": [np.zeros(1), np.ones(1)], "two": [np.full(1, 2.0)]}
    rows = encoder_times(encoders, mels, runs=4)  # type: ignore[arg-type]
    assert [name for name, _ in asked] == ["one a", "one b", "two a"] * 7
    assert set(asked) == {("one a", 0.0), ("one b", 0.0), ("one a", 1.0), ("one b", 1.0), ("two a", 2.0)}
    for figure in ("p50_ms", "p50_ratio", "cpu_ms", "cpu_ratio"):
        assert {name: set(row[f"encoder_{figure}"]) for name, row in rows.items()} == {"one": {"a", "b"}, "two": {"a"}}
    assert rows["one"]["encoder_p50_ratio"] == {"a": 1.0, "b": 1.0}
