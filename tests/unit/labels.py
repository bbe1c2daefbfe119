"""Labels made by hand, for tests."""

from dataclasses import replace
from typing import Any

from data_prep.labels.label_store import Decoding, Label
from eval.audio.utterances import Utterance


def decoding(tokens: list[int], prompt_length: int = 2, text: str = "text", **changes: Any) -> Decoding:
    """With these tokens and invented scores."""
    return replace(Decoding(text, tokens, prompt_length, -0.1, 0.0, ended=True), **changes)


def label(name: str, tokens: list[int] | None = None, audio: str = "none", **changes: Any) -> Label:
    """Of an utterance, with what a test wants of it."""
    plain = decoding(tokens or [1, 2, 3, 9])
    made = Label(name, "s", "train", [audio], 1.0, [name], [1.0], None, "en", None, plain)
    return replace(made, **changes)


def utterance(name: str, **changes: Any) -> Utterance:
    """Of the train split, with what a test wants of it."""
    made = Utterance(name, "s", "train", [name], 1.0, "a", "x", None, [name], [1.0], name)
    return replace(made, **changes)
