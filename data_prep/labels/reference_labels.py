"""Labels from the sources' own transcripts, to train a model that then serves as a teacher."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from data_prep.labels.label_store import Decoding, Label
from eval.audio.utterances import Utterance
from eval.runtimes.model_format import ModelFormat, load_tokenizer
from eval.scoring.error_rates import normalizer
from recipes.core.errors import UserError


def reference_labels(
    utterances: Sequence[Utterance], teacher: Path, *, language: str | None, task: str,
    text: Literal["reference", "normalized_reference"], timestamps: bool,
) -> list[Label]:  # fmt: skip
    """Return a label for each utterance: its transcript in the tokens of the teacher's vocabulary.

    The label of an utterance without a transcript has an `error`.

    Args:
        utterances: The utterances.
        teacher: The teacher's model folder.
        language: Language code of the prompt.
        task: `transcribe` or `translate`.
        text: `normalized_reference` converts transcripts to lower case and removes punctuation.
        timestamps: Also make labels with timestamps, in which the whole utterance is one segment.

    Raises UserError when no utterance has a transcript.
    """
    model_format = ModelFormat.load(teacher, language, task)
    tokenizer = load_tokenizer(teacher)
    normalize = normalizer("basic" if text == "normalized_reference" else "none", teacher)
    if not any(utterance.text for utterance in utterances):
        raise UserError(
            f"labels.text: {text} needs sources with transcripts, found none; name their column in "
            "corpus.sources.columns.text, or set labels.text to teacher"
        )

    def timestamp_token(seconds: float) -> int | None:
        token: int | None = tokenizer.token_to_id(f"<|{0.02 * round(seconds / 0.02):.2f}|>")
        return token

    def label(utterance: Utterance) -> Label:
        transcript = normalize(utterance.text or "").strip()
        # Whisper predicts a space before the first word.
        tokens = tokenizer.encode(f" {transcript}", add_special_tokens=False).ids
        timed = None
        if timestamps:
            start, end = timestamp_token(0.0), timestamp_token(utterance.seconds)
            if start is not None and end is not None:  # the timestamps of some vocabularies end before their window
                timed_tokens = [start, *tokens, end]
                timed = _given_decoding(transcript, model_format.prompt[:-1], timed_tokens, model_format.end)
        return Label(
            id=utterance.id, source=utterance.source, split=utterance.split, audio=utterance.audio,
            seconds=utterance.seconds, parts=utterance.parts, part_seconds=utterance.part_seconds,
            speaker=utterance.speaker, language=utterance.language or language, reference=utterance.text,
            plain=_given_decoding(transcript, model_format.prompt, tokens, model_format.end), timed=timed,
            error=None if transcript else "no transcript",
        )  # fmt: skip

    return [label(utterance) for utterance in utterances]


def _given_decoding(text: str, prompt: list[int], tokens: list[int], end: int) -> Decoding:
    """Return a decoding of a known text, with log-probability 0."""
    return Decoding(text, [*prompt, *tokens, end], len(prompt), 0.0, 0.0, ended=True)
