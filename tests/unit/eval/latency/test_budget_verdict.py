from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eval.latency.budget_verdict import describe_emulation, judge_artefact, judge_device, within_noise
from eval.latency.latency_rows import EmulatedRun, LatencyReport, LatencyRow, Percentiles
from eval.latency.verdict_rows import ArtefactFigures, ArtefactVerdict
from eval.reporting.collection import judge_devices
from eval.reporting.verdict_text import verdict_word
from eval.scoring.accuracy_report import AccuracyReport
from eval.scoring.accuracy_rows import AccuracyRow, Interval, MacroIntervals, MacroScore, PairedDifference
from recipes.core.errors import UserError
from recipes.engine.freshness import fingerprints
from recipes.schema.device_budget import BudgetLimits, DeviceBudget, MeasurementSettings, emulated_settings, load_budget
from recipes.schema.recipe import Recipe, validate_recipe
from tests.conftest import ROOT

numbers = st.floats(0.01, 1e4)


def variant(name: str, role: str, size_mb: float, p95: float, **more: Any) -> LatencyRow:
    return LatencyRow(
        name=name, role=role, runtime="onnx", precision="int8", size_mb=size_mb, peak_rss_mb=100.0, rtf=0.01,
        clip_ms=Percentiles(p95 / 2, p95, p95), **more,
    )  # fmt: skip


def judge(budget: DeviceBudget, row: LatencyRow, difference: Interval | None, drift: float = 1.0) -> ArtefactVerdict:
    return judge_artefact(budget, ArtefactFigures.of(row), difference, drift)


def gap(value: float, low: float, high: float) -> PairedDifference:
    return PairedDifference(value, low, high)


VARIANTS = [
    variant("teacher", "teacher", 20, 900),
    variant("a", "export", 10, 100),
    variant("b", "export", 4, 120),
]
GAPS = {"a": gap(0.5, 0.4, 0.6), "b": gap(0.9, 0.8, 0.95)}


def device(**values: Any) -> DeviceBudget:
    limits = {key: values.pop(key) for key in BudgetLimits.model_fields if key in values}
    return DeviceBudget(name="d", description="x", source="y", limits=BudgetLimits(**limits), **values)


def written(tmp_path: Path, name: str = "d", **values: Any) -> Path:
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"name": name, "description": "x", "source": "y", "limits": {}} | values))
    return file


def test_the_smallest_artefact_that_passes_is_named() -> None:
    assert judge_device(device(clip_p95_ms=300, wer_increase=1.0), VARIANTS, GAPS, True).cheapest == "b"
    strict = judge_device(device(clip_p95_ms=110), VARIANTS, GAPS, True)
    assert (strict.kept, strict.cheapest) == (True, "a")
    assert [verdict.kept for verdict in strict.verdicts] == [True, False]


def test_of_equal_size_the_faster_is_the_cheaper() -> None:
    rows = [variant("slow", "export", 4, 100), variant("fast", "export", 4, 50)]
    assert judge_device(device(clip_p95_ms=300), rows, {}, True).cheapest == "fast"


def test_a_budget_nothing_keeps_is_missed() -> None:
    result = judge_device(device(wer_increase=0.4), VARIANTS, GAPS, True)
    assert (result.kept, result.cheapest) == (False, None)


def test_a_limit_that_was_not_measured_is_not_kept() -> None:
    assert not judge_device(device(wer_increase=9), VARIANTS, {}, True).kept


@given(numbers, numbers, numbers, numbers, st.floats(0.5, 2))
def test_kept_is_the_value_and_safe_the_band(
    allowed: float, p95: float, one: float, other: float, drift: float
) -> None:
    low, high = sorted((one, other))
    row = variant("a", "export", 1, p95, noise={"clip_p95_ms": (min(low, p95), max(high, p95))})
    found = judge(device(clip_p95_ms=allowed), row, None, drift)
    (limit,) = found.rows
    assert limit.kept == found.kept == (p95 <= allowed)
    assert limit.low is not None
    assert limit.high is not None
    assert limit.low <= p95 * min(drift, 1 / drift) * (1 + 1e-9)
    assert limit.high >= p95 * max(drift, 1 / drift) * (1 - 1e-9)
    assert found.safe == (not limit.low <= allowed < limit.high)
    assert bool(limit.note) != found.safe


def test_an_interval_of_the_wer_that_reaches_over_the_limit_is_said() -> None:
    found = judge(device(wer_increase=1.0), VARIANTS[1], gap(0.5, -0.5, 1.5))
    assert (found.kept, found.safe) == (True, False)
    assert found.rows[0].note == "uncertain: the limit of 1 points is within the 95 % interval, -0.5 to 1.5"
    assert verdict_word(found) == "kept, WER uncertain"
    assert judge(device(wer_increase=1.0), VARIANTS[1], gap(0.5, -0.5, 0.9)).safe


def test_a_sure_miss_settles_it() -> None:
    row = variant("a", "export", 10, 100, noise={"clip_p95_ms": (90, 110)})
    assert within_noise(device(clip_p95_ms=100), row, 1.0)
    assert not within_noise(device(clip_p95_ms=100, size_mb=5), row, 1.0)
    assert not within_noise(device(clip_p95_ms=200), row, 1.0)
    assert within_noise(device(clip_p95_ms=200), row, 2.5), "a machine that drifted so far"


def test_what_does_not_fit_is_missed_and_says_so() -> None:
    row = replace(variant("a", "export", 10, 100), fits=False, reason="ended at 120 MB", clip_ms=None, rtf=None)
    found = judge_device(device(memory_mb=110, clip_p95_ms=300, size_mb=20), [row], {}, True)
    assert not found.kept
    assert found.verdicts[0].rows[0].key == "memory_cap"
    assert found.verdicts[0].rows[0].note == "does not fit: ended at 120 MB"
    assert verdict_word(found.verdicts[0]) == "does not fit"


def test_an_emulation_says_what_it_is() -> None:
    latency = LatencyReport(
        baseline="teacher", threads=2, clips=1, runs=1, fixed_tokens=None, load_average=0.0, baseline_drift=1.0,
        command="c", variants=VARIANTS, cpu="A CPU", emulated=[EmulatedRun(["d"], 2, 512.0, VARIANTS[1:])],
    )  # fmt: skip
    phone = device(cpu="an Arm CPU", threads=4, memory_mb=512)
    (found,) = judge_devices([phone], latency, None, required=False)
    assert found.emulation is not None
    text = found.emulation.text
    assert "measured on A CPU with 2 threads (the device may use 4, more than this machine has)" in text
    assert "at most 512 MB" in text
    assert "another processor, an Arm CPU; no speed ratio between the two is published" in text
    assert [verdict.artefact for verdict in found.verdicts] == ["a", "b"]
    assert latency.rows_for_device("d") == VARIANTS[1:]
    assert describe_emulation(device(), "A CPU", 2, 512.0) is None, "this machine is the device"
    assert replace(latency, emulated=()).rows_for_device("d") == VARIANTS


def test_a_published_factor_holds_for_its_machine_alone() -> None:
    scaled = device(cpu="an Arm CPU", clip_p95_ms=150, scale={"cpu": "A CPU", "factor": 2, "source": "paper"})
    for cpu, measured, kept in (("A CPU 2", 200, False), ("another", 100, True)):
        emulation = describe_emulation(scaled, cpu, 2, None)
        (row,) = judge_device(scaled, VARIANTS[1:2], {}, True, emulation=emulation).verdicts[0].rows
        assert (row.measured, row.kept) == (measured, kept)


def test_wer_increases_are_those_of_the_macro_average() -> None:
    wer = Interval(1, 0, 2)
    rows = [
        AccuracyRow(name, "export", "onnx", "fp32", {}, MacroScore(1, 1), MacroIntervals(wer, difference))
        for name, difference in (("t", None), ("a", gap(2, 0, 4)))
    ]
    assert AccuracyReport("none", 100, [], "c", rows, []).wer_increases() == {"a": gap(2, 0, 4)}


def test_a_misspelt_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"limits\.clip_p95"):
        load_budget(written(tmp_path, limits={"clip_p95": 3}))


def recipe(device: Path, *also: Path, threads: int = 2) -> Recipe:
    return validate_recipe(
        {"name": "x", "teacher": {"model": "m"}, "corpus": {"sources": [{"audio": "a"}]},
         "student": {"decoder_layers": 1}, "benchmark": {"threads": threads},
         "budget": {"device": device, "also": list(also)}}, "here",
    )  # fmt: skip


def emulated(values: Recipe) -> dict[str, MeasurementSettings]:
    return emulated_settings(values.benchmark, values.budget)


def test_only_what_a_budget_asks_of_the_machine_is_measured_again(tmp_path: Path) -> None:
    plain, small = written(tmp_path, "plain", threads=2), written(tmp_path, "small", threads=1, memory_mb=512)
    assert emulated(recipe(plain)) == {}
    assert emulated(recipe(plain, small)) == {"small": (1, 512)}
    before = fingerprints(recipe(plain, small), "benchmark")
    assert before["threads and memory of small"] == "(1, 512.0)"
    written(tmp_path, "small", threads=1, memory_mb=512, limits={"rtf": 1})
    assert fingerprints(recipe(plain, small), "benchmark") == before
    assert fingerprints(recipe(plain), "benchmark").keys() < before.keys()


def test_a_device_named_twice_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path)
    with pytest.raises(UserError, match="found d twice"):
        emulated(recipe(file, file))


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "budgets").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_budget_here_is_whole_and_says_what_is_published(file: Path) -> None:
    budget = load_budget(file)
    assert budget.name == file.stem
    assert None not in budget.limits.model_dump().values()
    assert "project's own choice" in budget.source
    assert budget.cpu is not None, "no machine that measures is known to be the device"
