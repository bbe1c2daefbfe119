"""Recipes: values, overrides and the errors for invalid ones."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.core.errors import UserError
from recipes.schema.recipe import Recipe, json_schema, load_recipe
from tests.conftest import ROOT

MINIMAL = """
name: small
teacher: {model: recipes/demo/teacher}
corpus: {sources: [{audio: somewhere}]}
labels: {}
student: {decoder_layers: 2}
train: {steps: 10}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(MINIMAL)
    return file


def test_overrides_win_over_the_file_and_the_file_over_defaults(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["train.learning_rate=1e-5", "export.onnx=[int8]", "train.steps=7"])
    assert loaded.train is not None
    assert (loaded.train.learning_rate, loaded.train.steps, loaded.train.temperature) == (1e-5, 7, 2.0)
    assert loaded.export.onnx == ["int8"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "train.stepz: unknown key"),
        ("train.steps=many", "train.steps: Input should be a valid integer"),
        ("train.steps=-1", "train.steps: Input should be greater than or equal to 0"),
        ("nonsense", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("labels=null", "train: needs a labels section"),
        ("heal={}", "heal: needs a compress section"),
        ("compress={}", "compress: expected a method"),
        ("compress={low_rank: {mlp: 1.1}}", "compress.low_rank.mlp: Input should be less than or equal to 1"),
        ("heal={teacher: stored}", "heal.teacher: stored needs labels with logits"),
        ("heal={hidden_weight: 1, freeze_encoder: true}", "hidden_weight: needs freeze_encoder: false"),
        ("corpus.sources=[{audio: a, audiofolder: b}]", "exactly one of"),
        ("corpus.sources=[]", "corpus.sources"),
        ("name=../x", "name: String should match"),
        ("train.steps=[1", "cannot be parsed"),
    ],
)
def test_a_bad_override_is_one_clear_line(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, [override])
    assert message in str(caught.value)


def test_a_student_with_a_smaller_vocabulary_cannot_draft(recipe: Path) -> None:
    trimmed = "compress={vocabulary: {tokens: 100}}"
    assert load_recipe(recipe, [trimmed, "eval.draft=0"])
    with pytest.raises(UserError, match=r"eval\.draft: needs a student with its teacher's tokens"):
        load_recipe(recipe, [trimmed, "eval.draft=9"])


def test_compression_methods_are_ordered_and_a_share_overrides_the_preset(recipe: Path) -> None:
    compress = load_recipe(recipe, ["compress={low_rank: {preset: fast, mlp: 0.5}, prune: {ffn_width: 64}}"]).compress
    assert compress is not None
    assert [name for name, _ in compress.methods] == ["prune", "low_rank"]
    assert compress.low_rank is not None
    assert compress.low_rank.shares == (0.95, 0.5)


def test_an_unknown_key_names_the_known_ones(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"known: .*temperature"):
        load_recipe(recipe, ["train.temprature=3"])


@pytest.mark.parametrize("text", ["- a\n- b\n", "name: [unclosed", "", "teacher: ${oc.env:NOT_SET_ANYWHERE}"])
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(UserError):
        load_recipe(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a YAML file, found none"):
        load_recipe(tmp_path / "none.yaml")


@given(
    st.floats(1e-8, 1.0),
    st.integers(0, 10**6),
    st.floats(0, 10),
)
def test_values_survive_a_round_trip(rate: float, steps: int, weight: float) -> None:
    first = Recipe.model_validate(
        {
            "name": "x", "teacher": {"model": "m"}, "corpus": {"sources": [{"audio": "a"}]}, "labels": {},
            "student": {"decoder_layers": 1}, "train": {"learning_rate": rate, "steps": steps, "kl_weight": weight},
        }
    )  # fmt: skip
    assert Recipe.model_validate(json.loads(first.model_dump_json())) == first


@pytest.mark.parametrize("file", sorted(ROOT.glob("recipes/*/recipe.yaml")), ids=lambda file: file.parent.name)
def test_every_recipe_of_the_repository_is_valid(file: Path) -> None:
    names = {"true-shape": "tiny-shape"}  # the variable SHAPE sets the shape and the name of the run
    assert load_recipe(file).name == names.get(file.parent.name, file.parent.name)


def test_every_field_is_documented() -> None:
    schema = json.loads(json_schema())
    for name, section in {**schema["$defs"], "Recipe": schema}.items():
        for key, field in section.get("properties", {}).items():
            assert field.get("description"), f"{name}.{key} has no docstring"
