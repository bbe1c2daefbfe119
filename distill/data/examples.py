"""One training example from a label: with timestamps or without, prompted or not, drawn anew in each epoch.

A prompt of previous text is `<|startofprev|>` once, then the end of what the same speaker said just before. Both models
see it and neither predicts it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from data_prep.audio.segmentation import recording_id
from data_prep.labels.label_store import Decoding, Label
from data_prep.sources.discovery import hash_fraction
from eval.audio.utterances import Utterance

IGNORED_LABEL = -100
"""Label of positions that are not predicted: prompt and padding."""


@dataclass(frozen=True)
class Example:
    """A label as it is learnt once."""

    label: Label
    written: Decoding
    previous: list[int]
    """`<|startofprev|>` and text tokens before the prompt; empty for none."""
    epoch: int = 0
    """In which it was drawn; changes to its audio depend on it."""

    @property
    def inputs(self) -> list[int]:
        """What the decoders read: everything but the last token."""
        return [*self.previous, *self.written.tokens[:-1]]

    @property
    def targets(self) -> list[int]:
        """Next tokens, IGNORE where the next token is given and not predicted; as long as the inputs."""
        given = len(self.previous) + self.written.prompt_length - 1
        return [IGNORED_LABEL] * given + self.written.tokens[self.written.prompt_length :]

    @property
    def text(self) -> list[int]:
        """Its tokens without prompt, timestamps and end of text."""
        plain = self.label.plain
        return plain.tokens[plain.prompt_length : -1 if plain.ended else None]


@dataclass(frozen=True)
class ExampleSampler:
    """How examples are drawn from labels."""

    timestamps: float = 0.0
    """Share of examples with timestamps, where the label has them."""
    previous_text: float = 0.0
    """Share of examples with previous text, where there is some."""
    start_of_previous: int | None = None
    """Token; None for a vocabulary without prompts."""
    max_length: int = 448
    """Tokens of the decoder; previous text takes at most half."""
    seed: int = 0

    def __call__(self, label: Label, before: Label | None, epoch: int) -> Example:
        """The example of a label in an epoch: a function of seed, epoch and id alone."""
        # Two draws that every epoch makes anew; a cached draw would show one form of an utterance for ever.
        timed, prompted = (hash_fraction(f"{self.seed} {epoch} {what} {label.id}") for what in ("timed", "prompted"))
        written = label.timed if label.timed is not None and timed < self.timestamps else label.plain
        if before is None or self.start_of_previous is None or prompted >= self.previous_text:
            return Example(label, written, [], epoch)
        room = min(self.max_length // 2 - 1, self.max_length - len(written.tokens) - 1)
        said = before.plain.tokens[before.plain.prompt_length : -1 if before.plain.ended else None]
        return Example(label, written, [self.start_of_previous, *said[-room:]] if room > 0 and said else [], epoch)


def previous_labels(labels: Sequence[Label], corpus: Sequence[Utterance]) -> dict[str, Label]:
    """By utterance id the label just before it: the next row above in the corpus, of the same recording or speaker.

    Never across speakers, and not where the row above has no kept label: text before a gap is not what was said.
    """
    known = {label.id: label for label in labels}
    found = {}
    for above, item in pairwise(corpus):
        alike = (above.source, above.split, above.speaker) == (item.source, item.split, item.speaker)
        same = item.speaker is not None or recording_id(above.parts[-1]) == recording_id(item.parts[0])
        if alike and same and item.id in known and (before := known.get(above.id)) is not None and before.plain.ended:
            found[item.id] = before
    return found
