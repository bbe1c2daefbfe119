"""Labels from the sources' own transcripts, for training a teacher."""

from collections.abc import Sequence

from data_prep.labels.label_store import Decoding, Label
from eval.audio.utterances import Utterance
from eval.runtimes.model_format import ModelFormat, load_tokenizer
from eval.scoring.error_rates import normalizer
from recipes.core.errors import UserError
from recipes.core.model_folder import resolve_model_folder
from recipes.schema.recipe import Recipe


def reference_labels(recipe: Recipe, utterances: Sequence[Utterance]) -> list[Label]:
    """One label an utterance, written in the teacher's vocabulary; an utterance without a transcript is an error row.

    With labels.timestamps the whole utterance is one segment. UserError where no utterance has a transcript.
    """
    assert recipe.labels is not None
    folder = resolve_model_folder(recipe.teacher.model)
    form = ModelFormat.load(folder, recipe.teacher.language, recipe.teacher.task)
    tokenizer = load_tokenizer(folder)
    normalize = normalizer("basic" if recipe.labels.text == "normalized_reference" else "none", folder)
    if not any(item.text for item in utterances):
        raise UserError(f"labels.text: {recipe.labels.text} needs sources with transcripts, found none")

    def label(item: Utterance) -> Label:
        text = normalize(item.text or "").strip()
        error = None if text else "no transcript"
        # Whisper writes a space before the first word.
        tokens = tokenizer.encode(f" {text}", add_special_tokens=False).ids
        plain = _decoding(text, form.prompt, tokens, form.end)
        timed = None
        if recipe.labels and recipe.labels.timestamps:
            first, last = (tokenizer.token_to_id(f"<|{0.02 * round(t / 0.02):.2f}|>") for t in (0.0, item.seconds))
            if first is not None and last is not None:  # some vocabularies end before their window does
                timed = _decoding(text, form.prompt[:-1], [first, *tokens, last], form.end)
        return Label(
            id=item.id, source=item.source, split=item.split, audio=item.audio, seconds=item.seconds, parts=item.parts,
            part_seconds=item.part_seconds, speaker=item.speaker, language=item.language or recipe.teacher.language,
            reference=item.text, plain=plain, timed=timed, error=error,
        )  # fmt: skip

    return [label(item) for item in utterances]


def _decoding(text: str, prompt: list[int], tokens: list[int], end: int) -> Decoding:
    return Decoding(text, [*prompt, *tokens, end], len(prompt), 0.0, 0.0, ended=True)
