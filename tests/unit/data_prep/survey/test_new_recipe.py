"""`sottovoce new`: what it finds in a folder of audio, and the recipe that it writes."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.new import main
from data_prep.survey.audio_survey import AudioSurvey, survey_audio, survey_folders
from data_prep.survey.machine_survey import MachineSurvey
from data_prep.survey.new_recipe import NewRecipe
from data_prep.survey.recipe_defaults import draft_recipe, learning_rate
from data_prep.survey.teacher_survey import survey_teacher
from eval.audio.recordings import AUDIO_SUFFIXES
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


def test_a_name_that_is_not_utf8_is_an_error(speech: Path, tmp_path: Path) -> None:
    clips = copied(speech, tmp_path / "caf\udce9")
    with pytest.raises(UserError, match=r"expected paths in UTF-8, found '.*caf.udce9"):
        survey_audio(clips)


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


def test_int8_is_judged_by_error_and_wer_and_not_by_whole_texts() -> None:
    parity = validate_recipe(draft_recipe(new_recipe(), []).written_values(), "mine").export.parity
    assert parity.min_equal_text["int8"] == 0
    assert parity.min_equal_text["fp32"] == 1
    assert parity.max_wer_increase["int8"] == 3


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


def copied(speech: Path, folder: Path, rows: list[dict[str, object]] | None = None) -> Path:
    """The four test clips in a folder, with these rows as metadata."""
    shutil.copytree(speech / "test", folder)
    (folder / "metadata.jsonl").unlink()
    if rows is not None:
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", b"", "expected rows"),
        ("metadata.csv", b"\xef\xbb\xbffile_name,text\na.wav,a\n", "found a byte order mark"),
        ("metadata.csv", "file_name,text\na.wav,\xe9\n".encode("latin-1"), "expected UTF-8"),
        ("metadata.csv", b"path,sentence\na.wav,a\n", "expected a file_name"),
        ("metadata.jsonl", b'{"file_name": 1}\n', "expected a text as file_name in row 1"),
        ("metadata.jsonl", b"[1]\n", "expected a file_name"),
        (
            "metadata.jsonl",
            b'{"file_name": "a.wav", "sentence": "a"}\n{"file_name": "b.wav"}\n',
            "expected a sentence in row 2",
        ),
    ],
)
def test_metadata_that_cannot_be_used(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        survey_audio(tmp_path)


def test_metadata_in_the_wrong_place(speech: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    copied(speech, both / "train", [{"file_name": "a.wav"}])
    copied(speech, both / "test")
    with pytest.raises(UserError, match=r"in .*/both/test, as in .*/both/train, found neither"):
        survey_audio(both)
    (both / "metadata.jsonl").write_text("{}")
    (both / "train" / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match="expected metadata in each of"):
        survey_audio(both)
    copied(speech, tmp_path / "above" / "below one", [{"file_name": "a.wav"}])
    with pytest.raises(UserError, match=r"give --audio '.*/above/below one'"):
        survey_audio(tmp_path / "above")
    for split in ("dev", "valid"):
        copied(speech, tmp_path / "twice" / split)
    with pytest.raises(UserError, match="expected one valid split"):
        survey_audio(tmp_path / "twice")


def test_what_is_not_used_is_said(speech: Path, tmp_path: Path) -> None:
    clips = copied(speech, tmp_path / "clips")
    (clips / "talk.m4a").touch()
    assert "1 files of other formats" in survey_audio(clips).describe()
    names = [file.relative_to(clips).as_posix() for file in sorted(clips.rglob("*")) if file.suffix in AUDIO_SUFFIXES]
    rows: list[dict[str, object]] = [{"file_name": name, "words": "a"} for name in names]
    assert "of the columns file_name, words none" in survey_audio(copied(speech, tmp_path / "b", rows)).describe()
    shutil.copytree(clips, tmp_path / "c" / "train")
    shutil.copytree(clips, tmp_path / "c" / "more")
    assert "these folders are not used: more" in survey_audio(tmp_path / "c").describe()


def test_a_folder_of_mostly_broken_audio_is_an_error_and_of_some_a_limit(speech: Path, tmp_path: Path) -> None:
    clips = copied(speech, tmp_path / "clips")
    (clips / "short.wav").write_bytes(b"")
    recipe = validate_recipe(draft_recipe(new_recipe(audio=[survey_audio(clips)]), []).written_values(), "mine")
    assert recipe.corpus.max_error_rate == 0.25  # one of five is broken
    for number in range(4):
        (clips / f"{number}-broken.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match="found 5 of 9 recordings that cannot"):
        survey_audio(clips)


def test_sources_get_names_of_their_own(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [copied(speech, tmp_path / person / "audio") for person in ("anna", "bert", "x/anna")]
    assert [survey.source.label for survey in survey_folders(folders)] == ["audio", "bert-audio", "anna-audio"]
    monkeypatch.chdir(folders[0])
    assert survey_folders([Path()])[0].source.label == "audio"
    for twice in ([folders[0], folders[0]], [folders[0].parent, folders[0]], [folders[0], Path()]):
        with pytest.raises(UserError, match="expected folders that share no recordings"):
            survey_folders(twice)


@pytest.mark.parametrize("count", [3, 4, 8, 20])
def test_few_recordings_are_divided_or_refused(count: int) -> None:
    few = replace(SHORT_CLIPS, recordings=Counter(train=count))
    recipe = validate_recipe(draft_recipe(new_recipe(audio=[few]), []).written_values(), "mine")
    assert 1 <= round(recipe.corpus.test_fraction * count) <= count - 2
    for recordings in (Counter(train=2), Counter(test=9), Counter(train=1, test=9)):
        with pytest.raises(UserError, match="expected at least"):
            draft_recipe(new_recipe(audio=[replace(SHORT_CLIPS, recordings=recordings)]), [])
    one = replace(SHORT_CLIPS, recordings=Counter(train=1))
    with pytest.raises(UserError, match="put them into one folder"):
        draft_recipe(new_recipe(audio=[one, one, one]), [])


def test_a_language_that_the_teacher_does_not_know() -> None:
    known = ("en", "de")
    for wrong in ("EN", "english", "xx"):
        with pytest.raises(UserError, match=f"--language: expected a code .* found {wrong}"):
            draft_recipe(new_recipe(language=wrong, known_languages=known), [])
    named = replace(SHORT_CLIPS, languages=Counter(English=20))
    with pytest.raises(UserError, match="language column: expected a code"):
        draft_recipe(new_recipe(language=None, known_languages=known, audio=[named]), [])
    assert draft_recipe(new_recipe(known_languages=known, audio=[named]), []).values["teacher"]["language"] == "en"
    assert draft_recipe(new_recipe(language=None, known_languages=["fr"]), []).values["teacher"]["language"] == "fr"
    german = replace(SHORT_CLIPS, languages=Counter(de=20))
    with pytest.raises(UserError, match="--audio: expected English"):
        draft_recipe(new_recipe(language=None, english_only=True, audio=[german]), [])


def test_teachers(tmp_path: Path) -> None:
    assert survey_teacher(str(TEACHER)).languages == ("en",)
    assert survey_teacher("openai/whisper-tiny.en").english_only
    assert "de" in survey_teacher("openai/whisper-base").languages
    assert "not known here" in survey_teacher("some/thing").remarks[0]
    teacher = tmp_path / "teacher"
    shutil.copytree(TEACHER, teacher)
    for file in ("generation_config.json", "config.json"):
        for content in ("{", "[]"):
            (teacher / file).write_text(content)
            with pytest.raises(UserError, match=f"--teacher: expected a JSON object in .*{file}"):
                survey_teacher(str(teacher))
    (teacher / "generation_config.json").unlink()
    with pytest.raises(UserError, match=r"with generation_config\.json, found none"):
        survey_teacher(str(teacher))


@pytest.mark.parametrize(
    "text",
    [
        "a: b",
        "#x",
        '"q"',
        "it's",
        "${x}",
        "a\\${oc.env:HOME}/\\\\${y}",
        "null",
        "1e5",
        "1.0",
        "no",
        "{a}, [b]",
        "日本",
        "a\nb",
    ],
)
def test_texts_are_read_as_they_were_written(text: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    values = {
        "name": "1e5", "teacher": {"model": text}, "corpus": {"sources": [{"audio": text}]},
        "student": {"decoder_layers": 1},
    }  # fmt: skip
    file.write_text(recipe_text(Path(text), RecipeDraft(values, {}, [f"Of {text}."])))
    recipe = load_recipe(file)
    assert (recipe.name, recipe.teacher.model, recipe.corpus.sources[0].audio) == ("1e5", text, Path(text))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("a: b", [], "NAME: expected 1 to 100 letters"),
        ("x" * 101, [], "NAME: expected 1 to 100 letters"),
        ("../x", [], "NAME: expected 1 to 100 letters"),
        ("core", [], "a folder of sottovoce"),
        ("demo", [], "NAME: expected no file"),
        ("mine", ["--write", "{folder}"], "--write: expected the name of a file"),
        ("mine", ["--write", "{folder}/file/r.yaml"], "--write: expected a place"),
        ("mine", ["--write", "{folder}/r.yaml", "--budget", "recipes/budgets"], "browser, laptop"),
    ],
)
def test_wrong_names_and_places_are_errors(
    name: str, changes: list[str], message: str, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "file").touch()
    places = [change.replace("{folder}", str(tmp_path)) for change in changes]
    monkeypatch.setattr("sys.argv", ["new", name, "--teacher", str(TEACHER), "--audio", str(speech), *places])
    with pytest.raises(UserError, match=message):
        main()


def test_outside_a_checkout(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["new", "mine", "--teacher", str(TEACHER), "--audio", str(speech), "--budget", "laptop"]
    monkeypatch.setattr("sys.argv", command)
    main()
    recipe = load_recipe(tmp_path / "recipes" / "mine" / "recipe.yaml")
    assert recipe.launch is not None
    assert recipe.launch.is_file()
    assert recipe.budget is not None
    assert recipe.budget.device.is_file()
