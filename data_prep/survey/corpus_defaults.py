"""Defaults of a new recipe that the audio decides: language, splits, packing and the check of labels."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from data_prep.survey.new_recipe import NewRecipe, Part
from recipes.core.errors import UserError
from recipes.schema.corpus_section import CorpusSection

MAX_LABEL_WER = 0.2
"""Labels further than this from a transcript are left out; Distil-Whisper used 0.1 on clean transcripts."""

TEST_RECORDINGS = (5, 500)
"""Recordings held out for testing, where the audio has no test split: a tenth of them, within these bounds."""

MAX_TEST_SHARE = 0.33
"""Largest share of the recordings that is held out for testing."""


def choose_language(new: NewRecipe) -> Part:
    """Return the language of the prompts, after checking that the teacher knows it."""
    listed = sum((survey.languages for survey in new.audio), start=Counter[str]())
    if new.english_only:
        if new.language not in (None, "en"):
            raise UserError(f"--language: expected en, the only language of {new.teacher}, found {new.language}")
        if new.language is None and (others := sorted(code for code in listed if not code.lower().startswith("en"))):
            raise UserError(
                f"--audio: expected English, the only language of {new.teacher}, found {', '.join(others)} in the "
                "metadata's language column; take a multilingual teacher, or give --language en if the column is wrong"
            )
        reason = "The teacher knows English only; its prompt names no language."
        return {"teacher": {"language": None}}, {"teacher.language": reason}
    if new.language:
        _check_languages(new, [new.language], "--language")
        return {"teacher": {"language": new.language}}, {}
    if not listed and len(new.known_languages) == 1:
        reason = "The only language that the teacher knows."
        return {"teacher": {"language": new.known_languages[0]}}, {"teacher.language": reason}
    if not listed:
        raise UserError(
            f"--language: {new.teacher} knows many languages and the audio names none; "
            "give the language that is spoken, such as --language en"
        )
    _check_languages(new, sorted(listed), "--audio: language column")
    most = listed.most_common(1)[0][0]
    if len(listed) == 1:
        return {"teacher": {"language": most}}, {"teacher.language": "That of the metadata's language column."}
    reason = f"The metadata's language column says {', '.join(sorted(listed))}; each clip is prompted in its own."
    return {"teacher": {"language": most}, "labels": {"language": "column"}}, {"labels.language": reason}


def _check_languages(new: NewRecipe, codes: Sequence[str], key: str) -> None:
    """Raise UserError for the first code that the teacher does not know; `key` says where the codes are from."""
    for code in codes:
        if new.known_languages and code not in new.known_languages:
            some = ", ".join(new.known_languages[:5]) + (", ..." if len(new.known_languages) > 5 else "")
            cure = "correct it" if key == "--language" else "correct the column, or give --language for all recordings"
            raise UserError(f"{key}: expected a code that {new.teacher} knows ({some}), found {code}; {cure}")


def choose_splits(new: NewRecipe) -> Part:
    """Return the share that is held out for testing, after checking that there is enough."""
    _check_enough(new)
    untested = [survey for survey in new.audio if not survey.recordings["test"]]
    options: dict[str, Any] = {}
    reasons = {}
    if untested:
        least, most = TEST_RECORDINGS
        total = sum(survey.recordings["train"] for survey in untested)
        share = min(MAX_TEST_SHARE, max(0.1, least / total), max(most / total, 0.001))
        options["test_fraction"] = float(f"{share:.2g}")
        which = "The audio has" if len(untested) == len(new.audio) else "Some of the audio has"
        reasons["corpus.test_fraction"] = (
            f"{which} no test split: this share of its recordings is held out and never trained on."
        )
    unusable = sum(len(survey.unreadable) for survey in new.audio)
    looked_at = unusable + sum(len(survey.seconds) for survey in new.audio)
    if unusable > 0.5 * CorpusSection.model_fields["max_error_rate"].default * looked_at:
        options["max_error_rate"] = round(unusable / looked_at + 0.05, 2)
        reasons["corpus.max_error_rate"] = (
            f"{unusable} of {looked_at} recordings cannot be used and are left out, see corpus/refused.json of the "
            "run; above this share the run ends."
        )
    return {"corpus": options}, reasons


def _check_enough(new: NewRecipe) -> None:
    """Raise UserError where the recordings cannot be divided into training, validation and test."""
    splits = sum((survey.recordings for survey in new.audio), start=Counter[str]())
    needed = 1 + (not splits["validation"]) + (not splits["test"])
    # Unusable recordings are counted by folder, not by split: only where there is one split is theirs known.
    unusable = sum(len(survey.unreadable) for survey in new.audio if survey.recordings.keys() == {"train"})
    found = splits["train"] - unusable
    if found < needed:
        raise UserError(
            f"--audio: expected at least {needed} recordings for training, of which one each is held out where there "
            f"is no validation or test folder, found {found}; add recordings, or cut long ones"
        )
    if not splits["test"] and all(survey.recordings["train"] < 2 for survey in new.audio):
        raise UserError(
            "--audio: expected a folder with two recordings or more, of which one is held out for testing, found one "
            "in each; put them into one folder"
        )


def choose_packing(new: NewRecipe) -> Part:
    """Return whether short recordings are joined."""
    if not new.packs:
        return {}, {}
    median = max(survey.median_seconds for survey in new.audio)
    reason = (
        f"Recordings are short (median {median:.1f} s): neighbours of one speaker are joined, since the encoder "
        f"always works on {new.window_seconds} s."
    )
    return {"corpus": {"pack": True}}, {"corpus.pack": reason}


def choose_quality(new: NewRecipe) -> Part:
    """Return how far a label may be from its transcript."""
    if not any(survey.transcribed for survey in new.audio):
        return {}, {}
    reason = "Labels further than this from the transcript are left out of training, as wrong or as another text."
    return {"quality": {"max_wer": MAX_LABEL_WER}}, {"quality.max_wer": reason}
