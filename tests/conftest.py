"""Fixtures: a tiny real corpus, made once, and the teacher that ships with the demo."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEACHER = ROOT / "recipes" / "demo" / "teacher"
SENTENCES = (
    "one two three", "c a t", "nine five two", "go", "help", "enter six", "yes", "no", "repeat", "stop",
    "seven zero four", "b o x", "march third", "eight", "rubout t h r", "start", "five five", "q u e", "ten twelve",
    "erase a b", "one nine", "six", "two two seven", "h e l p",
)  # fmt: skip


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audiofolder of synthetic speech: 16 train, 4 validation, 4 test utterances."""
    from data_prep.synthesize import VOICES, synthesize

    folder = tmp_path_factory.mktemp("speech")
    cuts = {"train": SENTENCES[:16], "validation": SENTENCES[16:20], "test": SENTENCES[20:]}
    for split, sentences in cuts.items():
        rows = synthesize(sentences, VOICES, folder / split, seed=1)
        (folder / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
