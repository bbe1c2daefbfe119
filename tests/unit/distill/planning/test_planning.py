"""A plan: costs are found again, the largest student that passes is taken, and its recipe is one."""

import os
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import plan
from distill.planning.choice import StudentOption, judge_candidate, largest_options, nearest_option, predict_options
from distill.planning.cost_model import LIMITED, TERMS, CostModel, Point, cost_terms, leave_one_out_errors, nonnegative
from distill.planning.random_students import build_checkpoint
from distill.planning.recipe_writing import write_recipe
from distill.planning.search_space import DEPTHS, Candidate, PlannedTeacher, SearchSpace
from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import UserError
from recipes.core.whisper_shape import WHISPER_SHAPES
from recipes.schema.recipe import load_recipe
from tests.conftest import ROOT, TEACHER
from tests.unit.eval.latency.test_budget_verdict import device

VOCABULARIES = ROOT.parent / "shared" / "whisper-vocab"
BASE = PlannedTeacher("openai/whisper-base", WHISPER_SHAPES["base"], TEACHER, 50257)
ONNX = ("onnx", "int8")
TOKENS = 20


def true_costs(coefficients: dict[str, list[float]]) -> CostModel:
    return CostModel({part: np.array(values) for part, values in coefficients.items()}, TOKENS, p95=1.1, rtf=2e-4)


def made(costs: CostModel, candidates: list[Candidate], teacher: PlannedTeacher = BASE) -> list[Point]:
    return [(shape, costs.predict(shape)) for shape in map(teacher.cut, candidates)]


# Each term from nothing to as much as the fixed part at whisper-base's own shape.
shares = st.fixed_dictionaries({
    part: st.lists(st.one_of(st.just(0.0), st.floats(0.05, 1)), min_size=len(names) - 1, max_size=len(names) - 1)
    for part, names in TERMS.items()
})  # fmt: skip
whole = cost_terms(WHISPER_SHAPES["base"])


def of_shares(drawn: dict[str, list[float]]) -> CostModel:
    return true_costs({
        part: [1.0, *(share / whole[name] for share, name in zip(drawn[part], names[1:], strict=True))]
        for part, names in TERMS.items()
    })  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(shares)
def test_costs_that_are_sums_of_the_terms_are_found_again(drawn: dict[str, list[float]]) -> None:
    truth, space = of_shares(drawn), SearchSpace.of(BASE, 5)
    found = CostModel.fit(made(truth, space.design()), TOKENS)
    for part, coefficients in truth.coefficients.items():
        np.testing.assert_allclose(found.coefficients[part], coefficients, rtol=1e-5, atol=1e-6 * max(coefficients))
    for shape in map(BASE.cut, space.candidates()[::37]):
        assert found.predict(shape) == pytest.approx(truth.predict(shape), rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(5, 9))
def test_no_other_nonnegative_fit_is_better(seed: int, count: int, rows: int) -> None:
    draw = np.random.default_rng(seed)
    features_NT, values_N = draw.random((rows, count)), draw.uniform(0.5, 2, rows)
    found_T = nonnegative(features_NT, values_N)
    assert (found_T >= 0).all()

    def wrong(coefficients_T: np.ndarray) -> float:
        return float(np.sum((features_NT @ coefficients_T / values_N - 1) ** 2))

    for other_T in found_T + draw.normal(scale=[[1e-3], [0.1], [1.0]] * 20, size=(60, count)):
        assert wrong(found_T) <= wrong(other_T.clip(min=0)) + 1e-9


def test_a_point_that_fits_nothing_shows_in_the_errors() -> None:
    points = made(
        of_shares({part: [0.5] * (len(names) - 1) for part, names in TERMS.items()}), SearchSpace.of(BASE, 5).design()
    )
    assert max(leave_one_out_errors(points, TOKENS).values()) < 1e-6
    shape, figures = points[3]
    points[3] = shape, {**figures, "token_ms": 3 * figures["token_ms"], "size_mb": 2 * figures["size_mb"]}
    found = leave_one_out_errors(points, TOKENS)
    assert found["clip_p95_ms"] > 0.05
    assert found["size_mb"] > 0.1
    assert found["peak_rss_mb"] < 1e-6


def planned(limit_ms: float, error: float = 0.0, **more: float) -> list[StudentOption]:
    """Base's students: a second for the whole encoder's linear layers, ten milliseconds a token."""
    costs = true_costs({
        part: [1e-6, *(0.0 for _ in names[1:])] for part, names in TERMS.items()
    } | {
        "encoder_ms": [1.0, 0.0, 1000 / whole["linear"], 0.0], "token_ms": [1.0, 9 / whole["layers"], 0.0, 0.0],
        "size_mb": [0.0, 1.0, 1.0, 1.0, 0.0], "peak_rss_mb": [50.0, 2.0, 0.0, 0.0, 0.0],
    })  # fmt: skip
    wrong = dict.fromkeys(LIMITED, error)
    budget = device(clip_p95_ms=limit_ms, wer_increase=1.0, **more)
    return predict_options(budget, BASE, SearchSpace.of(BASE, 5).candidates(), {ONNX: (costs, wrong)})


@settings(max_examples=30, deadline=None)
@given(st.floats(150, 1500), st.floats(0, 0.3))
def test_the_largest_that_pass_are_taken(limit_ms: float, error: float) -> None:
    found = planned(limit_ms, error)
    top = largest_options(found)
    passing = [each for each in found if each.figures["clip_p95_ms"] * (1 + error) <= limit_ms]
    assert {each.candidate for each in found if each.kept} == {each.candidate for each in passing}
    assert bool(top) == bool(passing)
    if passing:
        assert top[0].size == max(each.size for each in passing)

    def values(candidate: Candidate) -> tuple[float, ...]:
        return (candidate.encoder_layers, candidate.decoder_layers, candidate.seconds, candidate.tokens or 1e9)

    def covered(one: StudentOption, by: StudentOption) -> bool:
        return all(here <= there for here, there in zip(values(one.candidate), values(by.candidate), strict=True))

    assert all(any(covered(each, by=other) for other in top) for each in passing)
    assert not any(covered(one, by=other) for one, other in product(top, top) if one is not other)


def test_a_limit_within_the_error_is_not_passed_and_a_cap_ends() -> None:
    candidate = Candidate(6, 6, 30, None)
    figures = {"clip_p50_ms": 250.0, "clip_p95_ms": 290.0, "rtf": 0.1, "peak_rss_mb": 400.0, "size_mb": 80.0}

    def option(error: float, **limits: float) -> StudentOption:
        return judge_candidate(
            device(**limits), candidate, WHISPER_SHAPES["base"], ONNX, figures, dict.fromkeys(LIMITED, error)
        )

    assert option(0.01, clip_p95_ms=300).kept
    assert not option(0.10, clip_p95_ms=300).kept
    assert option(0.0, clip_p95_ms=400, size_mb=100).margins == pytest.approx(
        {"clip latency p95": 0.275, "size on disk": 0.2}
    )
    assert option(0.1, clip_p95_ms=400, memory_mb=450).kept
    assert not option(0.2, clip_p95_ms=400, memory_mb=450).kept
    assert option(0.0, wer_increase=0.001).kept  # no plan knows it


def test_times_of_a_device_are_scaled() -> None:
    figures = {"clip_p50_ms": 100.0, "clip_p95_ms": 100.0, "rtf": 0.1, "peak_rss_mb": 1.0, "size_mb": 1.0}
    judge = [
        judge_candidate(
            device(clip_p95_ms=150), Candidate(1, 1, 30, None), WHISPER_SHAPES["tiny"], ONNX, figures, {}, factor
        )
        for factor in (1.0, 2.0)
    ]
    assert [each.kept for each in judge] == [True, False]


def test_where_none_passes_the_nearest_is_named() -> None:
    found = planned(1.0)
    assert not largest_options(found)
    assert nearest_option(found).candidate.encoder_layers == 1
    assert nearest_option(found).candidate.decoder_layers == 1


def test_of_one_student_the_cheapest_artefact_stands() -> None:
    found = planned(5000)
    halves = [{**each.figures, "size_mb": each.figures["size_mb"] / 2} for each in found]
    small = [
        replace(each, artefact=("openvino", "int8"), figures=half) for each, half in zip(found, halves, strict=True)
    ]
    (top,) = largest_options([*found, *small])
    assert (top.artefact, top.candidate) == (("openvino", "int8"), Candidate(6, 6, 30, None))


@pytest.mark.parametrize("shape", ["tiny", "small", "large-v3"])
def test_the_design_lies_in_the_space_and_no_deeper_than_is_measured(shape: str) -> None:
    teacher = replace(BASE, shape=WHISPER_SHAPES[shape])
    space = SearchSpace.of(teacher, 5)
    assert max(space.encoder_layers) == WHISPER_SHAPES[shape].encoder_layers
    design = space.design()
    assert len(set(design)) == len(design) == 8
    assert set(design) <= set(space.candidates())
    assert all(max(each.encoder_layers, each.decoder_layers) <= DEPTHS for each in design)
    # Every term of every part can be told from the others.
    known = [cost_terms(teacher.cut(each)) for each in design]
    for names in TERMS.values():
        features_NT = np.array([[each[name] for name in names] for each in known])
        assert np.linalg.matrix_rank(features_NT / np.linalg.norm(features_NT, axis=0)) == len(names)


def test_the_shape_is_what_compression_leaves(tmp_path: Path) -> None:
    if not (VOCABULARIES / "multilingual").is_dir():
        pytest.skip(f"{VOCABULARIES}: no vocabulary")
    found = PlannedTeacher.find("tiny", VOCABULARIES / "multilingual", "en")
    teacher = replace(found, shape=replace(found.shape, width=32, heads=2))
    candidate = Candidate(2, 1, 10, 8000)
    build_checkpoint(teacher, candidate, tmp_path / "student", tmp_path)
    config, shape = load_model(tmp_path / "student").config, teacher.cut(candidate)
    assert (config.vocab_size, config.max_source_positions) == (shape.vocabulary, shape.source_positions)
    assert (config.encoder_layers, config.decoder_layers, config.d_model) == (2, 1, 32)


@pytest.mark.parametrize(
    "candidate", [Candidate(6, 6, 30, None), Candidate(6, 2, 10, 8000), Candidate(3, 2, 30, None)], ids=str
)
def test_the_recipe_is_one_that_check_accepts(
    tmp_path: Path, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    option = judge_candidate(device(), candidate, BASE.cut(candidate), ONNX,
                    dict.fromkeys(("clip_p50_ms", *LIMITED), 1.0), {})  # fmt: skip
    path, rest = tmp_path / "mine" / "recipe.yaml", {"threads": 2, "language": "en", "audio": [], "comment": "a\nb"}
    said = write_recipe(path, option, BASE, Path("recipes/budgets/laptop.yaml"), **rest)  # type: ignore[arg-type]
    recipe = load_recipe(path)
    assert said[0].startswith("recipe mine: corpus -> labels")
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
        write_recipe(path, option, BASE, Path("recipes/budgets/laptop.yaml"), **rest)  # type: ignore[arg-type]


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
def test_wrong_options_are_one_line(message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = ["--budget", str(ROOT / "recipes" / "budgets" / "laptop.yaml"), "--teacher", str(TEACHER)]
    monkeypatch.setattr(sys, "argv", ["plan", *right, "--cache", str(tmp_path), *WRONG[message]])
    monkeypatch.setitem(os.environ, "VOCABULARY", str(tmp_path / "none"))
    with pytest.raises(UserError) as raised:
        plan.main()
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
