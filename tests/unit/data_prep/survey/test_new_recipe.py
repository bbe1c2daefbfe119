"""`sottovoce new`: what it finds in a folder of audio, and the recipe that it writes."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.new import main
from data_prep.survey.audio_survey import AudioSurvey, survey_audio
from data_prep.survey.machine_survey import MachineSurvey
from data_prep.survey.recipe_defaults import NewRecipe, draft_recipe, learning_rate
from recipes.core.errors import UserError
from recipes.core.whisper_shape import HUB_SHAPES
from recipes.engine.recipe_writer import RecipeDraft, recipe_text, write_recipe
from recipes.schema.corpus_section import AudioSource
from recipes.schema.recipe import load_recipe, validate_recipe
from tests.conftest import ROOT, TEACHER

LAPTOP = MachineSurvey("a CPU", 4, 16.0, 100.0, (), 0.0, False)
CLUSTER = MachineSurvey("a CPU", 96, 1000.0, 4000.0, ("H200",) * 8, 141.0, True)
SHORT_CLIPS = AudioSurvey(
    AudioSource(audio=Path("clips")), Counter(train=20), tuple(float(s) for s in range(2, 22)), 0, 0, Counter(), ()
)


def new_recipe(**changes: object) -> NewRecipe:
    """A new recipe of whisper-base for 20 short English clips on a laptop, with these fields changed."""
    base = NewRecipe(
        "mine", "openai/whisper-base", HUB_SHAPES["openai/whisper-base"], False, True, "en", [SHORT_CLIPS], LAPTOP, None
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_a_bare_folder_is_surveyed(speech: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(speech / "train", folder)
    (folder / "metadata.jsonl").unlink()
    (folder / "broken.wav").write_bytes(b"RIFF")
    survey = survey_audio(folder)
    assert survey.source.audio == folder
    assert survey.recordings == {"train": 17}
    assert (survey.transcribed, survey.speakers) == (0, 0)
    assert len(survey.seconds) == 16
    assert "broken.wav" in survey.unreadable[0]
    assert "17 recordings" in survey.describe()
    assert "no transcripts" in survey.describe()
    assert "1 files cannot be read" in survey.describe()


def test_an_audiofolder_is_surveyed(speech: Path) -> None:
    survey = survey_audio(speech)
    assert survey.source.audiofolder == speech
    assert survey.recordings == {"train": 16, "validation": 4, "test": 4}
    assert survey.transcribed == 24
    assert survey.speakers > 1
    assert survey.has_test_transcripts


def test_another_name_of_the_text_column_is_found(speech: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(speech / "test", folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    renamed = [{"file_name": row["file_name"], "transcription": row["text"]} for row in rows]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    survey = survey_audio(folder)
    assert survey.source.columns.text == "transcription"
    assert survey.transcribed == 4


def test_a_folder_without_audio_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--audio: expected a folder"):
        survey_audio(tmp_path / "missing")
    with pytest.raises(UserError, match="expected audio"):
        survey_audio(tmp_path)


def test_the_learning_rate_falls_with_the_width() -> None:
    assert [learning_rate(width) for width in (96, 192, 384, 512, 768, 1024, 1280)] == [
        1e-3, 1e-3, 5e-4, 4e-4, 3e-4, 1e-4, 1e-4,
    ]  # fmt: skip


def test_a_laptop_and_a_cluster_get_what_fits_them() -> None:
    laptop = validate_recipe(draft_recipe(new_recipe(), []).written_values(), "laptop")
    assert str(laptop.launch) == "recipes/accelerate/cpu.yaml"
    assert laptop.train is not None
    assert laptop.train.cache_encoder
    assert laptop.train.precision == "no"
    assert laptop.eval is not None
    assert laptop.eval.reference == "teacher"
    assert 0.1 <= laptop.corpus.test_fraction <= 0.5
    hours = replace(SHORT_CLIPS, recordings=Counter(train=1_000_000), seconds=(12.0,) * 2000)
    cluster = validate_recipe(draft_recipe(new_recipe(machine=CLUSTER, audio=[hours]), []).written_values(), "cluster")
    assert str(cluster.launch) == "recipes/accelerate/ddp.yaml"
    assert cluster.train is not None
    assert (cluster.train.precision, cluster.train.batch_size, cluster.train.steps) == ("bf16", 256, 20_000)
    assert not cluster.train.cache_encoder


def test_transcripts_and_speakers_are_used() -> None:
    spoken = replace(SHORT_CLIPS, transcribed=20, speakers=5, recordings=Counter(train=16, test=4))
    draft = draft_recipe(new_recipe(audio=[spoken]), [])
    recipe = validate_recipe(draft.written_values(), "mine")
    assert recipe.corpus.pack
    assert recipe.corpus.test_fraction == 0
    assert recipe.quality.max_wer == 0.2
    assert recipe.eval is not None
    assert recipe.eval.reference == "transcript"
    assert "neighbours of one speaker" in draft.reasons["corpus.pack"]


def test_languages() -> None:
    german = replace(SHORT_CLIPS, languages=Counter(de=20))
    assert draft_recipe(new_recipe(language=None, audio=[german]), []).values["teacher"]["language"] == "de"
    mixed = replace(SHORT_CLIPS, languages=Counter(de=15, fr=5))
    values = draft_recipe(new_recipe(language=None, audio=[mixed]), []).values
    assert (values["teacher"]["language"], values["labels"]["language"]) == ("de", "column")
    with pytest.raises(UserError, match="knows many languages and the audio names none"):
        draft_recipe(new_recipe(language=None), [])
    with pytest.raises(UserError, match="--language: expected en"):
        draft_recipe(new_recipe(language="de", english_only=True), [])


def test_an_english_only_teacher_is_prompted_without_a_language() -> None:
    draft = draft_recipe(new_recipe(language=None, english_only=True), [])
    assert "  language: null\n" in recipe_text(Path("r.yaml"), draft)
    assert validate_recipe(draft.written_values(), "r.yaml").teacher.language is None


def test_the_text_of_a_recipe_is_its_values_with_reasons(tmp_path: Path) -> None:
    values = {"name": "a", "train": {"steps": 3, "ratio": None, "rate": 1e-4}, "list": [{"audio": "x"}, {"audio": "y"}]}
    text = recipe_text(Path("r.yaml"), RecipeDraft(values, {"train.steps": "Few."}, ["Written today."]))
    assert text == (
        "# sottovoce run r.yaml\n# Written today.\nname: a\ntrain:\n  # Few.\n  steps: 3\n  rate: 0.0001\n"
        "list:\n  - {audio: x}\n  - {audio: y}\n"
    )
    taken = tmp_path / "taken.yaml"
    taken.touch()
    with pytest.raises(UserError, match="expected no file"):
        write_recipe(taken, RecipeDraft(values, {}, []))


def test_the_command_writes_a_recipe_that_loads(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    file = tmp_path / "mine" / "recipe.yaml"
    command = [
        "new",
        "mine",
        "--teacher",
        str(TEACHER),
        "--audio",
        str(speech),
        "--language",
        "en",
        "--write",
        str(file),
    ]
    monkeypatch.setattr("sys.argv", [*command, "--budget", "laptop"])
    main()
    out = capsys.readouterr().out
    assert "24 recordings (16 train, 4 validation, 4 test)" in out
    assert out.splitlines()[-1] == f"next     sottovoce run {file}"
    recipe = load_recipe(file)
    assert recipe.budget is not None
    assert recipe.budget.device == Path("recipes/budgets/laptop.yaml")
    assert recipe.corpus.max_seconds == 7
    assert "# sottovoce run" in file.read_text().splitlines()[0]
    monkeypatch.setattr("sys.argv", [*command, "--budget", "fridge"])
    file.unlink()
    with pytest.raises(UserError, match="expected a budget file or one of browser, laptop"):
        main()
