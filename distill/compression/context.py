"""What the compression methods share: their signature, the training data they measure on, and activation hooks.

Each method is a function of type `Method` in a module of its own. The stage `distill.compress` calls them one after the
other, each on the model that the one before returned.

N positions, I inputs, O outputs of a layer, F mel bins, T mel frames, S encoder positions, D width, L tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from data_prep.labels.quality_checks import kept_labels
from distill.data.calibration import CalibrationAudio, evenly_spaced
from eval.audio.utterances import read_utterances
from eval.runtimes.model_format import load_tokenizer
from recipes.core.errors import UserError
from recipes.core.progress import track


@dataclass(frozen=True)
class CompressionContext:
    """The training utterances that a method may measure on, and the processor files that it may rewrite."""

    audio: Sequence[Sequence[str]]
    """For each utterance, references to its audio (`eval.audio`)."""
    texts: Sequence[str | None]
    """For each utterance, its pseudo-label or else its transcript; None if it has neither."""
    clips: int
    """Number of utterances to calibrate with, evenly spread over the training set."""
    processors: Path
    """Folder of the student's tokenizer, feature extractor and generation config."""

    def calibration_audio(self, model: WhisperForConditionalGeneration) -> CalibrationAudio:
        """Return the log-mels of the calibration clips, padded or cut to the model's window."""
        return CalibrationAudio.spread(self.audio, model.config, self.clips, "compress:")

    def decoder_inputs(self, model: WhisperForConditionalGeneration) -> list[list[int]]:
        """Return the decoder's input tokens for the same clips: the start token, then the text.

        Texts are encoded with the tokenizer as it is now, which an earlier method may have trimmed. A clip without text
        has only the start token. Raises UserError if no clip has text.
        """
        tokenizer, config = load_tokenizer(self.processors), model.config
        texts_ids = [
            tokenizer.encode(f" {text.strip()}", add_special_tokens=False).ids if text else []
            for text in evenly_spaced(self.texts, self.clips)
        ]
        if not any(texts_ids):
            raise UserError(
                "compress: expected labels or transcripts of the training audio, found none in the corpus; "
                "add the section labels, or leave compress.prune.decoder_ffn_width out"
            )
        return [[config.decoder_start_token_id, *ids][: config.max_target_positions] for ids in texts_ids]


def training_clips(run: Path, *, labelled: bool) -> tuple[list[list[str]], list[str | None]]:
    """Return the audio references and the text of every training utterance of a run folder.

    If the run is `labelled`, an utterance's text is the pseudo-label that the quality stage kept; an utterance without
    one, and every utterance of a run that is not labelled, has its transcript from the corpus, or None.
    """
    labels = {label.id: label.text for label in kept_labels(run)} if labelled else {}
    utterances = read_utterances(run / "corpus", "train")
    texts = [labels.get(utterance.id) or utterance.text for utterance in utterances]
    return [utterance.audio for utterance in utterances], texts


class Method(Protocol):
    """A compression method."""

    def __call__(
        self, model: WhisperForConditionalGeneration, options: Any, context: CompressionContext, /
    ) -> tuple[WhisperForConditionalGeneration, Mapping[str, object]]:
        """Return a smaller copy of `model`, and a report of what was done that is written to compression.json.

        `options` is the method's own part of the recipe's compress section. `model` itself is not changed; the files in
        `context.processors` are rewritten where the smaller model needs others.
        """


Observer = Callable[[Tensor, Tensor], None]
"""Called with a layer's inputs [N, I] and outputs [N, O] at all N positions of one clip."""


@torch.no_grad()
def observe_activations(
    model: WhisperForConditionalGeneration,
    calibration: CalibrationAudio,
    observers: Mapping[str, Observer],
    decoder_inputs: Sequence[Sequence[int]] | None = None,
) -> None:
    """Run the clips through the encoder and pass the activations of the named layers to their observers.

    With `decoder_inputs`, one token list for each clip, the decoder is run as well. The positions of padding are
    included: a device computes them like all others, and attention reads them.

    Args:
        model: The model to observe.
        calibration: Log-mels [1, F, T], one clip at a time.
        observers: An observer for each layer, by the layer's name in `model`.
        decoder_inputs: Decoder tokens of each clip.
    """

    def make_hook(observer: Observer) -> Callable[[nn.Module, tuple[Tensor, ...], Any], None]:
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            outputs = output[0] if isinstance(output, tuple) else output
            observer(inputs[0].flatten(0, -2), outputs.flatten(0, -2))

        return hook

    hooks = [
        model.get_submodule(name).register_forward_hook(make_hook(observer)) for name, observer in observers.items()
    ]
    try:
        for index, mel_1FT in enumerate(track(calibration, "calibration", unit="clip")):
            states_1SD = model.model.encoder(torch.from_numpy(mel_1FT)).last_hidden_state
            if decoder_inputs is not None:
                inputs_1L = torch.tensor([decoder_inputs[index]])
                model.model.decoder(input_ids=inputs_1L, encoder_hidden_states=states_1SD, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
