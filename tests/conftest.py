"""Fixtures: a tiny real corpus, made once, and the teacher that ships with the demo."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
TEACHER = ROOT / "recipes" / "demo" / "teacher"
SPEECH = Path(os.environ.get("SPEECH", "speech")).absolute()
"""Folder of real corpora (docs/corpora.md); tests that need one are skipped where it is missing."""
VOCABULARIES = Path(os.environ.get("VOCABULARIES", "vocabularies")).absolute()
"""Folder with Whisper's tokenizers in `english`, `multilingual` and `large-v3`; likewise."""
SENTENCES = (
    "one two three", "c a t", "nine five two", "go", "help", "enter six", "yes", "no", "repeat", "stop",
    "seven zero four", "b o x", "march third", "eight", "rubout t h r", "start", "five five", "q u e", "ten twelve",
    "erase a b", "one nine", "six", "two two seven", "h e l p",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first, so that no process is left alone with one of them at the end."""
    items.sort(key=lambda item: "longest" not in item.keywords)


Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """A named folder, filled by the first worker that asks for it; the others wait, and all of them only read."""
    own = tmp_path_factory.getbasetemp()
    root = own if worker_id == "master" else own.parent

    def folder(name: str, fill: Callable[[Path], None]) -> Path:
        place, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                fill(place)
                done.touch()
        return place

    return folder


@pytest.fixture(scope="session")
def speech(once: Once) -> Path:
    """An audiofolder of synthetic speech: 16 train, 4 validation, 4 test utterances."""

    def speak(folder: Path) -> None:
        from data_prep.sources.synthesis import VOICES, synthesize

        cuts = {"train": SENTENCES[:16], "validation": SENTENCES[16:20], "test": SENTENCES[20:]}
        for split, sentences in cuts.items():
            rows = synthesize(sentences, VOICES, folder / split, seed=1)
            (folder / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return once("speech", speak)
