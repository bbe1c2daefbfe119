"""Labels and utterances with fixed values, for tests."""

from dataclasses import replace
from typing import Any

from data_prep.labels.label_store import Decoding, Label
from eval.audio.utterances import Utterance


def decoding(tokens: list[int], prompt_length: int = 2, text: str = "text", **changes: Any) -> Decoding:
    """Return a decoding with these tokens; its scores are arbitrary."""
    return replace(Decoding(text, tokens, prompt_length, -0.1, 0.0, ended=True), **changes)


def label(name: str, tokens: list[int] | None = None, audio: str = "none", **changes: Any) -> Label:
    """Return a label of the train split, with `changes` to its fields."""
    plain = decoding(tokens or [1, 2, 3, 9])
    base = Label(name, "s", "train", [audio], 1.0, [name], [1.0], None, "en", None, plain)
    return replace(base, **changes)


def utterance(name: str, **changes: Any) -> Utterance:
    """Return an utterance of the train split, with `changes` to its fields."""
    base = Utterance(name, "s", "train", [name], 1.0, "a", "x", None, [name], [1.0], name)
    return replace(base, **changes)
