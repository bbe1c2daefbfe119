"""Planning: the cost model recovers known costs, the largest passing student is chosen, and its recipe is valid."""

import os
import sys
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import plan
from distill.planning.choice import StudentOption, judge_candidate, largest_options, nearest_option, predict_options
from distill.planning.cost_model import (
    LIMITED,
    TERMS,
    CostFigures,
    CostModel,
    FittedCosts,
    MeasuredShape,
    PredictionErrors,
    cost_terms,
    fit_nonnegative,
    leave_one_out_errors,
)
from distill.planning.planned_recipe import draft_planned_recipe
from distill.planning.random_students import build_checkpoint
from distill.planning.search_space import DEPTHS, Candidate, PlannedTeacher, SearchSpace
from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import UserError
from recipes.core.whisper_shape import WHISPER_SHAPES
from recipes.engine.recipe_writer import write_recipe
from recipes.schema.device_budget import BudgetLimits, DeviceBudget
from recipes.schema.recipe import load_recipe
from tests.conftest import ROOT, TEACHER, VOCABULARIES

BASE = PlannedTeacher("openai/whisper-base", WHISPER_SHAPES["base"], TEACHER, 50257)
ONNX = ("onnx", "int8")
TOKENS = 20


def device(memory_mb: float | None = None, **limits: float) -> DeviceBudget:
    return DeviceBudget(
        name="device", description="", source="", memory_mb=memory_mb, limits=BudgetLimits(**limits)
    )  # fmt: skip


def true_costs(coefficients: dict[str, list[float]]) -> CostModel:
    arrays = {part: np.array(values) for part, values in coefficients.items()}
    return CostModel(arrays, TOKENS, p95_over_p50=1.1, rtf_per_ms=2e-4)


def measured_as(costs: CostModel, candidates: list[Candidate]) -> list[MeasuredShape]:
    """Return the candidates as if each had been measured to cost exactly what `costs` predicts."""
    return [MeasuredShape(shape, costs.predict(shape)) for shape in map(BASE.cut, candidates)]


def limited_figures(clip_p95_ms: float, rtf: float, peak_rss_mb: float, size_mb: float) -> CostFigures:
    """Return figures of which only those that a budget limits matter."""
    return CostFigures(0, 0, 0, 0, clip_p95_ms, clip_p95_ms, rtf, peak_rss_mb, size_mb)


def equal_errors(error: float) -> PredictionErrors:
    return PredictionErrors(**dict.fromkeys(LIMITED, error))


# Each term costs between nothing and as much as the fixed term does at whisper-base's own shape.
term_shares = st.fixed_dictionaries({
    part: st.lists(st.one_of(st.just(0.0), st.floats(0.05, 1)), min_size=len(names) - 1, max_size=len(names) - 1)
    for part, names in TERMS.items()
})  # fmt: skip
base_terms = cost_terms(WHISPER_SHAPES["base"])


def costs_of_shares(drawn: dict[str, list[float]]) -> CostModel:
    return true_costs({
        part: [1.0, *(share / base_terms[name] for share, name in zip(drawn[part], names[1:], strict=True))]
        for part, names in TERMS.items()
    })  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(term_shares)
def test_the_fit_recovers_costs_that_are_sums_of_the_terms(drawn: dict[str, list[float]]) -> None:
    truth, space = costs_of_shares(drawn), SearchSpace.of(BASE, 5)
    fitted = CostModel.fit(measured_as(truth, space.design()), TOKENS)
    for part, coefficients in truth.coefficients.items():
        np.testing.assert_allclose(fitted.coefficients[part], coefficients, rtol=1e-5, atol=1e-6 * max(coefficients))
    for shape in map(BASE.cut, space.candidates()[::37]):
        assert asdict(fitted.predict(shape)) == pytest.approx(asdict(truth.predict(shape)), rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(5, 9))
def test_no_other_nonnegative_fit_is_better(seed: int, count: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    terms_NT, values_N = rng.random((rows, count)), rng.uniform(0.5, 2, rows)
    fitted_T = fit_nonnegative(terms_NT, values_N)
    assert (fitted_T >= 0).all()

    def squared_error(coefficients_T: np.ndarray) -> float:
        return float(np.sum((terms_NT @ coefficients_T / values_N - 1) ** 2))

    for other_T in fitted_T + rng.normal(scale=[[1e-3], [0.1], [1.0]] * 20, size=(60, count)):
        assert squared_error(fitted_T) <= squared_error(other_T.clip(min=0)) + 1e-9


def test_a_measurement_that_does_not_fit_raises_the_errors() -> None:
    costs = costs_of_shares({part: [0.5] * (len(names) - 1) for part, names in TERMS.items()})
    points = measured_as(costs, SearchSpace.of(BASE, 5).design())
    assert max(asdict(leave_one_out_errors(points, TOKENS)).values()) < 1e-6
    figures = points[3].figures
    points[3] = replace(points[3], figures=replace(figures, token_ms=3 * figures.token_ms, size_mb=2 * figures.size_mb))
    errors = leave_one_out_errors(points, TOKENS)
    assert errors.clip_p95_ms > 0.05
    assert errors.size_mb > 0.1
    assert errors.peak_rss_mb < 1e-6


def planned_options(limit_ms: float, error: float = 0.0, **more: float) -> list[StudentOption]:
    """Predict all students of whisper-base. The uncut encoder takes one second, and each token ten milliseconds."""
    costs = true_costs({
        part: [1e-6, *(0.0 for _ in names[1:])] for part, names in TERMS.items()
    } | {
        "encoder_ms": [1.0, 0.0, 1000 / base_terms["linear"], 0.0],
        "token_ms": [1.0, 9 / base_terms["layers"], 0.0, 0.0],
        "size_mb": [0.0, 1.0, 1.0, 1.0, 0.0], "peak_rss_mb": [50.0, 2.0, 0.0, 0.0, 0.0],
    })  # fmt: skip
    budget = device(clip_p95_ms=limit_ms, wer_increase=1.0, **more)
    fitted = {ONNX: FittedCosts(costs, equal_errors(error))}
    return predict_options(budget, BASE, SearchSpace.of(BASE, 5).candidates(), fitted)


@settings(max_examples=30, deadline=None)
@given(st.floats(150, 1500), st.floats(0, 0.3))
def test_the_largest_that_pass_are_taken(limit_ms: float, error: float) -> None:
    options = planned_options(limit_ms, error)
    largest = largest_options(options)
    passing = [option for option in options if option.figures.clip_p95_ms * (1 + error) <= limit_ms]
    assert {option.candidate for option in options if option.passes} == {option.candidate for option in passing}
    assert bool(largest) == bool(passing)
    if passing:
        assert largest[0].size == max(option.size for option in passing)

    def values(candidate: Candidate) -> tuple[float, ...]:
        return (candidate.encoder_layers, candidate.decoder_layers, candidate.seconds, candidate.tokens or 1e9)

    def covered(option: StudentOption, by: StudentOption) -> bool:
        pairs = zip(values(option.candidate), values(by.candidate), strict=True)
        return all(smaller <= larger for smaller, larger in pairs)

    assert all(any(covered(option, by=other) for other in largest) for option in passing)
    assert not any(covered(one, by=other) for one, other in product(largest, largest) if one is not other)


def test_a_limit_within_the_error_is_not_kept_and_neither_is_a_memory_cap() -> None:
    candidate = Candidate(6, 6, 30, None)
    figures = limited_figures(clip_p95_ms=290.0, rtf=0.1, peak_rss_mb=400.0, size_mb=80.0)

    def option(error: float, **limits: float) -> StudentOption:
        return judge_candidate(device(**limits), candidate, WHISPER_SHAPES["base"], ONNX, figures, equal_errors(error))

    assert option(0.01, clip_p95_ms=300).passes
    assert not option(0.10, clip_p95_ms=300).passes
    assert option(0.0, clip_p95_ms=400, size_mb=100).margins == pytest.approx(
        {"clip latency p95": 0.275, "size on disk": 0.2}
    )
    assert option(0.1, clip_p95_ms=400, memory_mb=450).passes
    assert not option(0.2, clip_p95_ms=400, memory_mb=450).passes
    assert option(0.0, wer_increase=0.001).passes  # unknown before training


def test_times_are_scaled_to_the_device() -> None:
    figures = limited_figures(clip_p95_ms=100.0, rtf=0.1, peak_rss_mb=1.0, size_mb=1.0)
    candidate, shape = Candidate(1, 1, 30, None), WHISPER_SHAPES["tiny"]
    options = [
        judge_candidate(device(clip_p95_ms=150), candidate, shape, ONNX, figures, PredictionErrors(), factor)
        for factor in (1.0, 2.0)
    ]
    assert [option.passes for option in options] == [True, False]


def test_the_nearest_option_is_named_if_none_passes() -> None:
    options = planned_options(1.0)
    assert not largest_options(options)
    assert nearest_option(options).candidate.encoder_layers == 1
    assert nearest_option(options).candidate.decoder_layers == 1


def test_a_student_is_represented_by_its_cheapest_artefact() -> None:
    options = planned_options(5000)
    half_size = [
        replace(
            option, artefact=("openvino", "int8"), figures=replace(option.figures, size_mb=option.figures.size_mb / 2)
        )
        for option in options
    ]
    (largest,) = largest_options([*options, *half_size])
    assert (largest.artefact, largest.candidate) == (("openvino", "int8"), Candidate(6, 6, 30, None))


@pytest.mark.parametrize("shape", ["tiny", "small", "large-v3"])
def test_the_design_is_in_the_space_and_not_deeper_than_what_is_measured(shape: str) -> None:
    teacher = replace(BASE, shape=WHISPER_SHAPES[shape])
    space = SearchSpace.of(teacher, 5)
    assert max(space.encoder_layers) == WHISPER_SHAPES[shape].encoder_layers
    design = space.design()
    assert len(set(design)) == len(design) == 8
    assert set(design) <= set(space.candidates())
    assert all(max(candidate.encoder_layers, candidate.decoder_layers) <= DEPTHS for candidate in design)
    # The terms of every part are linearly independent.
    terms = [cost_terms(teacher.cut(candidate)) for candidate in design]
    for names in TERMS.values():
        terms_NT = np.array([[row[name] for name in names] for row in terms])
        assert np.linalg.matrix_rank(terms_NT / np.linalg.norm(terms_NT, axis=0)) == len(names)


def test_the_predicted_shape_is_that_of_the_compressed_checkpoint(tmp_path: Path) -> None:
    if not (VOCABULARIES / "multilingual").is_dir():
        pytest.skip(f"{VOCABULARIES}: holds no vocabulary")
    real = PlannedTeacher.find("tiny", VOCABULARIES / "multilingual", "en")
    teacher = replace(real, shape=replace(real.shape, width=32, heads=2))
    candidate = Candidate(2, 1, 10, 8000)
    build_checkpoint(teacher, candidate, tmp_path / "student", tmp_path)
    config, shape = load_model(tmp_path / "student").config, teacher.cut(candidate)
    assert (config.vocab_size, config.max_source_positions) == (shape.vocabulary, shape.source_positions)
    assert (config.encoder_layers, config.decoder_layers, config.d_model) == (2, 1, 32)


@pytest.mark.parametrize(
    "candidate", [Candidate(6, 6, 30, None), Candidate(6, 2, 10, 8000), Candidate(3, 2, 30, None)], ids=str
)
def test_check_accepts_the_recipe(tmp_path: Path, candidate: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    figures = limited_figures(1.0, 1.0, 1.0, 1.0)
    option = judge_candidate(device(), candidate, BASE.cut(candidate), ONNX, figures, PredictionErrors())
    path, budget = tmp_path / "mine" / "recipe.yaml", Path("recipes/budgets/laptop.yaml")
    draft = draft_planned_recipe(
        "mine", option, BASE, budget, threads=2, language="en", audio=[], header=["shape   size", "a       b"]
    )
    lines = write_recipe(path, draft)
    assert path.read_text().splitlines()[1:3] == ["# shape   size", "# a       b"]
    recipe = load_recipe(path)
    assert lines[0].split()[:4] == ["recipe", "mine:", "corpus", "->"]
    assert recipe.student.decoder_layers == candidate.decoder_layers
    assert recipe.student.encoder_layers == (3 if candidate.encoder_layers == 3 else None)
    assert recipe.train is not None
    assert recipe.train.freeze_encoder == (candidate.encoder_layers == 6)
    assert (recipe.compress is None) == (recipe.heal is None) == (candidate.tokens is None)
    if recipe.compress is not None:
        assert recipe.compress.window is not None
        assert recipe.compress.window.seconds == candidate.seconds == recipe.corpus.max_seconds
    assert recipe.export.artefacts == [("onnx-int8", "onnx", "int8")]
    with pytest.raises(UserError, match="expected no file"):
        write_recipe(path, draft)


WRONG = {
    "--teacher: expected tiny, base": ["--teacher", "huge"],
    "--vocabulary: expected tokenizer.json": ["--teacher", "tiny"],
    "--language: expected a code": ["--language", "tlh"],
    "--seconds: expected 1 to 7, found 20": ["--seconds", "20"],
    "--windows: expected 5 to 7, found 3": ["--windows", "3"],
    "--decoder-layers: expected 1 to 4, found 5": ["--decoder-layers", "2", "5"],
    "--artefacts: expected some of onnx-fp32": ["--artefacts", "onnx-int2"],
    "budget.device nowhere.yaml: expected a readable": ["--budget", "nowhere.yaml"],
    "--write: expected no file": ["--write", str(ROOT / "recipes" / "demo" / "recipe.yaml")],
    "--tokens: expected 2": ["--tokens", "1"],
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_options_are_reported_in_one_line(message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = ["--budget", str(ROOT / "recipes" / "budgets" / "laptop.yaml"), "--teacher", str(TEACHER)]
    monkeypatch.setattr(sys, "argv", ["plan", *right, "--cache", str(tmp_path), *WRONG[message]])
    monkeypatch.setitem(os.environ, "VOCABULARY", str(tmp_path / "none"))
    with pytest.raises(UserError) as raised:
        plan.main()
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
