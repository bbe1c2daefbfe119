"""Training examples: how one label is presented to the models in one epoch.

An example is a label with or without timestamps, and with or without previous text as a prompt; both are drawn anew in
each epoch. The prompt is the token `<|startofprev|>`, then the end of what the same speaker said just before. Teacher
and student both read the prompt, and neither is trained to predict it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from data_prep.audio.segmentation import recording_id
from data_prep.labels.label_store import Decoding, Label
from data_prep.sources.discovery import hash_fraction
from eval.audio.utterances import Utterance

IGNORED_LABEL = -100
"""Label of positions where nothing is to be predicted: prompt and padding."""


@dataclass(frozen=True)
class Example:
    """A label in the form in which it is learnt in one epoch."""

    label: Label
    written: Decoding
    """The decoding that is learnt: the label's `plain` or its `timed` one."""
    previous: list[int]
    """`<|startofprev|>` and text tokens that precede the prompt; empty without previous text."""
    epoch: int = 0
    """Epoch in which the example was drawn; augmentation of its audio depends on it."""

    @property
    def inputs(self) -> list[int]:
        """The tokens that the decoders read: all but the last one."""
        return [*self.previous, *self.written.tokens[:-1]]

    @property
    def targets(self) -> list[int]:
        """The next token at each input token, IGNORED_LABEL where it belongs to the prompt; as long as `inputs`."""
        prompt_targets = len(self.previous) + self.written.prompt_length - 1
        return [IGNORED_LABEL] * prompt_targets + self.written.tokens[self.written.prompt_length :]

    @property
    def text(self) -> list[int]:
        """The text tokens of the label, without prompt, timestamps and end of text."""
        return text_tokens(self.label.plain)


def text_tokens(decoding: Decoding) -> list[int]:
    """Return a decoding's tokens without its prompt and its end of text."""
    return decoding.tokens[decoding.prompt_length : -1 if decoding.ended else None]


@dataclass(frozen=True)
class ExampleSampler:
    """Draws the example of a label in an epoch."""

    timestamps: float = 0.0
    """Probability of timestamps, for labels that have them."""
    previous_text: float = 0.0
    """Probability of previous text, for labels that have some."""
    start_of_previous: int | None = None
    """The token `<|startofprev|>`; None for a vocabulary without it."""
    max_length: int = 448
    """Token limit of the decoder; previous text takes at most half of it."""
    seed: int = 0

    def __call__(self, label: Label, previous: Label | None, epoch: int) -> Example:
        """Draw the example of `label`, whose previous text is that of `previous`.

        The draw depends on seed, epoch and utterance id only.
        """
        # Drawn here and not when the data are prepared: a stored draw would be the same in every epoch.
        timed, prompted = (hash_fraction(f"{self.seed} {epoch} {what} {label.id}") for what in ("timed", "prompted"))
        written = label.timed if label.timed is not None and timed < self.timestamps else label.plain
        if previous is None or self.start_of_previous is None or prompted >= self.previous_text:
            return Example(label, written, [], epoch)
        room = min(self.max_length // 2 - 1, self.max_length - len(written.tokens) - 1)
        text = text_tokens(previous.plain)
        return Example(label, written, [self.start_of_previous, *text[-room:]] if room > 0 and text else [], epoch)


def previous_labels(labels: Sequence[Label], corpus: Sequence[Utterance]) -> dict[str, Label]:
    """Return, by utterance id, the label of the utterance just before it.

    That is the row above in the corpus if it has the same source, split and speaker or, without a speaker, the same
    recording. An utterance has none if the row above has no kept label, or a label without an end of text: across such
    a gap the text would not be what was said just before.
    """
    label_by_id = {label.id: label for label in labels}
    previous = {}
    for above, row in pairwise(corpus):
        same_set = (above.source, above.split, above.speaker) == (row.source, row.split, row.speaker)
        adjacent = row.speaker is not None or recording_id(above.parts[-1]) == recording_id(row.parts[0])
        label = label_by_id.get(above.id)
        if same_set and adjacent and row.id in label_by_id and label is not None and label.plain.ended:
            previous[row.id] = label
    return previous
