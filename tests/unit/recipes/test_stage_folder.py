import json
from pathlib import Path

import pytest

from recipes.core.errors import UserError
from recipes.engine.flow import active_stages, inputs_of
from recipes.engine.freshness import fingerprints, path_fingerprint, read_record, stage_freshness
from recipes.engine.stage_folder import StageFolder, open_stage
from recipes.schema.recipe import Recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    audio = tmp_path / "audio"
    audio.mkdir()
    (audio / "metadata.jsonl").write_text("{}")
    return Recipe.model_validate(
        {
            "name": "run", "runs": tmp_path / "runs", "teacher": {"model": str(tmp_path / "teacher")}, "labels": {},
            "corpus": {"sources": [{"audiofolder": audio}]}, "student": {"decoder_layers": 2}, "train": {},
        }
    )  # fmt: skip


def changed(recipe: Recipe, **update: object) -> Recipe:
    return Recipe.model_validate({**recipe.model_dump(), **update})


def make(recipe: Recipe, name: str, content: str = "x") -> None:
    path_fingerprint.cache_clear()
    with open_stage(recipe, name, "command") as work:
        (work.folder / "out.txt").write_text(content)
        work.finish(counts={"n": 1})


def test_a_finished_stage_is_current_and_records_what_it_is(recipe: Recipe) -> None:
    assert stage_freshness(recipe, "corpus").reason == "not made yet"
    make(recipe, "corpus")
    assert stage_freshness(recipe, "corpus").current
    record = read_record(recipe.root / "corpus")
    assert record is not None
    assert record["outputs"]["out.txt"]["bytes"] == 1
    assert record["recipe"]["corpus"]["validation_fraction"] == 0.05
    assert record["machine"]["versions"]["torch"]
    assert not (recipe.root / "corpus.partial").exists()


def test_a_changed_section_makes_a_stage_stale_and_says_which(recipe: Recipe) -> None:
    make(recipe, "corpus")
    other = changed(recipe, seed=1)
    assert stage_freshness(other, "corpus").reason == "stale: seed changed"
    assert stage_freshness(changed(recipe, student={"decoder_layers": 1}), "corpus").current


def test_a_changed_source_or_output_makes_a_stage_stale(recipe: Recipe, tmp_path: Path) -> None:
    make(recipe, "corpus")
    (recipe.root / "corpus" / "out.txt").write_text("longer")
    assert "out.txt is missing or was changed" in stage_freshness(recipe, "corpus").reason
    make(recipe, "corpus")
    (tmp_path / "audio" / "metadata.jsonl").write_text("{} ")
    path_fingerprint.cache_clear()
    assert "audio changed" in stage_freshness(recipe, "corpus").reason


def test_staleness_runs_downstream_only_when_the_output_differs(recipe: Recipe) -> None:
    make(recipe, "corpus")
    make(recipe, "labels")
    (recipe.root / "corpus" / "stage.json").unlink()
    make(recipe, "corpus")
    assert stage_freshness(recipe, "labels").current, "the same output again keeps what was made from it"
    (recipe.root / "corpus" / "stage.json").unlink()
    make(recipe, "corpus", "different")
    assert stage_freshness(recipe, "labels").reason == "stale: corpus output changed"


def test_a_field_that_the_schema_has_gained_makes_nothing_stale_at_its_default(recipe: Recipe) -> None:
    make(recipe, "corpus")
    file = recipe.root / "corpus" / "stage.json"
    record = json.loads(file.read_text())
    del record["recipe"]["corpus"]["pack"]
    file.write_text(json.dumps(record))
    assert stage_freshness(recipe, "corpus").current
    packed = changed(recipe, corpus=recipe.corpus.model_copy(update={"pack": True}))
    assert stage_freshness(packed, "corpus").reason == "stale: corpus changed"
    record["recipe"]["corpus"]["a field of an older version"] = 1
    file.write_text(json.dumps(record))
    assert not stage_freshness(recipe, "corpus").current


def test_a_stage_refuses_missing_and_stale_inputs_with_the_command_that_mends_it(recipe: Recipe) -> None:
    with pytest.raises(UserError, match=r"corpus is not made yet; run `python -m data_prep.corpus RECIPE`"):
        make(recipe, "labels")
    make(recipe, "corpus")
    with pytest.raises(UserError, match="stale: seed changed"):
        make(changed(recipe, seed=3), "labels")


def test_a_failed_stage_keeps_its_partial_work_and_the_last_good_result(recipe: Recipe) -> None:
    make(recipe, "corpus", "good")
    (recipe.root / "corpus" / "stage.json").unlink()
    with pytest.raises(UserError, match="broken"), open_stage(recipe, "corpus", "command") as work:
        (work.folder / "half.txt").write_text("half")
        raise UserError("broken")
    record = json.loads((recipe.root / "corpus.partial" / "stage.json").read_text())
    assert (record["status"], record["exit"], record["error"]) == ("failed", 2, "broken")
    assert (recipe.root / "corpus" / "out.txt").read_text() == "good"
    with open_stage(recipe, "corpus", "command") as work:
        assert (work.folder / "half.txt").read_text() == "half", "the next try goes on from there"
        work.finish()


def test_partial_work_of_another_recipe_is_not_taken_over(recipe: Recipe) -> None:
    with pytest.raises(UserError), open_stage(recipe, "corpus", "command") as work:
        (work.folder / "half.txt").write_text("half")
        raise UserError("broken")
    with open_stage(changed(recipe, seed=9), "corpus", "command") as work:
        assert not (work.folder / "half.txt").exists()
        work.finish()


def test_two_processes_do_not_make_the_same_stage(recipe: Recipe) -> None:
    with open_stage(recipe, "corpus", "command") as work:
        with pytest.raises(UserError, match="another process"):
            StageFolder(recipe, "corpus", "command", True).open()
        work.finish()


def test_a_null_section_leaves_its_stage_out(recipe: Recipe) -> None:
    shorter = changed(recipe, train=None, eval=None)
    names = [spec.name for spec in active_stages(shorter)]
    assert names == ["corpus", "labels", "quality", "student", "export", "benchmark", "report"]
    assert inputs_of(shorter, "export") == ["corpus", "student"]
    assert fingerprints(shorter, "export").keys() == {"corpus output", "student output"}
