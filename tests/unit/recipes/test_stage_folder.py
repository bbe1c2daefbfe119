"""Stage folders: records, staleness, continuing after a failure, locks and log files."""

import json
from pathlib import Path

import pytest

from recipes.core.errors import UserError
from recipes.core.logs import log
from recipes.engine.flow import STAGE_BY_NAME, active_stages, inputs_of
from recipes.engine.freshness import fingerprints, path_fingerprint, stage_freshness
from recipes.engine.stage_folder import StageFolder, log_file, open_stage
from recipes.engine.stage_record import read_record, read_records
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
    with open_stage(recipe, name, "command") as stage:
        (stage.folder / "out.txt").write_text(content)
        stage.finish(counts={"n": 1})


def test_a_finished_stage_is_current_and_has_a_record(recipe: Recipe) -> None:
    assert stage_freshness(recipe, "corpus").reason == "not made yet"
    make(recipe, "corpus")
    assert stage_freshness(recipe, "corpus").current
    record = read_record(recipe.root / "corpus")
    assert record is not None
    assert record["outputs"]["out.txt"]["bytes"] == 1
    assert record["recipe"]["corpus"]["validation_fraction"] == 0.05
    assert record["machine"]["versions"]["torch"]
    assert not (recipe.root / "corpus.partial").exists()


def test_a_changed_section_makes_a_stage_stale_and_is_named(recipe: Recipe) -> None:
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


def test_later_stages_become_stale_only_if_the_output_differs(recipe: Recipe) -> None:
    make(recipe, "corpus")
    make(recipe, "labels")
    (recipe.root / "corpus" / "stage.json").unlink()
    make(recipe, "corpus")
    assert stage_freshness(recipe, "labels").current, "the output is the same as before"
    (recipe.root / "corpus" / "stage.json").unlink()
    make(recipe, "corpus", "different")
    assert stage_freshness(recipe, "labels").reason == "stale: corpus output changed"


def test_a_new_field_of_the_schema_at_its_default_makes_no_stage_stale(recipe: Recipe) -> None:
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


def test_a_stage_refuses_missing_and_stale_inputs_and_names_the_command_to_run(recipe: Recipe) -> None:
    with pytest.raises(UserError, match=r"corpus is not made yet; run `python -m data_prep.corpus RECIPE`"):
        make(recipe, "labels")
    make(recipe, "corpus")
    with pytest.raises(UserError, match="stale: seed changed"):
        make(changed(recipe, seed=3), "labels")


def test_a_failed_stage_keeps_its_partial_output_and_the_last_good_result(recipe: Recipe) -> None:
    make(recipe, "corpus", "good")
    (recipe.root / "corpus" / "stage.json").unlink()
    with pytest.raises(UserError, match="broken"), open_stage(recipe, "corpus", "command") as stage:
        (stage.folder / "half.txt").write_text("half")
        raise UserError("broken")
    record = json.loads((recipe.root / "corpus.partial" / "stage.json").read_text())
    assert (record["status"], record["exit"], record["error"]) == ("failed", 2, "broken")
    assert (recipe.root / "corpus" / "out.txt").read_text() == "good"
    with open_stage(recipe, "corpus", "command") as stage:
        assert (stage.folder / "half.txt").read_text() == "half", "the next attempt continues with it"
        stage.finish()


def test_the_partial_output_of_another_recipe_is_discarded(recipe: Recipe) -> None:
    with pytest.raises(UserError), open_stage(recipe, "corpus", "command") as stage:
        (stage.folder / "half.txt").write_text("half")
        raise UserError("broken")
    with open_stage(changed(recipe, seed=9), "corpus", "command") as stage:
        assert not (stage.folder / "half.txt").exists()
        stage.finish()


def test_two_processes_cannot_run_the_same_stage(recipe: Recipe) -> None:
    with open_stage(recipe, "corpus", "command") as stage:
        with pytest.raises(UserError, match="another process"):
            StageFolder(recipe, "corpus", "command", True).open()
        stage.finish()


def test_a_null_section_leaves_its_stage_out(recipe: Recipe) -> None:
    shorter = changed(recipe, train=None, eval=None)
    names = [stage.name for stage in active_stages(shorter)]
    assert names == ["corpus", "labels", "quality", "student", "export", "benchmark", "report"]
    assert inputs_of(shorter, "export") == ["corpus", "student"]
    assert fingerprints(shorter, "export").keys() == {"corpus output", "student output"}


def test_a_stage_appends_its_messages_to_a_log_file_that_is_no_stage(recipe: Recipe) -> None:
    with open_stage(recipe, "corpus", "python -m data_prep.corpus RECIPE") as stage:
        log.info("24 recordings")
        stage.finish()
    with pytest.raises(UserError), open_stage(recipe, "labels", "command"):
        raise UserError("broken")
    lines = log_file(recipe, "corpus").read_text().splitlines()
    assert lines[0].endswith("DEBUG   started: python -m data_prep.corpus RECIPE")
    assert lines[1].endswith("INFO    24 recordings")
    assert "ended by UserError" in log_file(recipe, "labels").read_text()
    assert log_file(recipe, "corpus") == recipe.root / "logs" / "corpus.log"
    assert "logs" not in STAGE_BY_NAME
    assert read_records(recipe.root, [folder.name for folder in recipe.root.iterdir()]).keys() == {"corpus"}
    assert stage_freshness(recipe, "corpus").current, "the log file is no output of the stage"
