"""The student made smaller after training: one method a module, each a `Method`, chained by the stage."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration

from distill.data.calibration import CalibrationAudio
from eval.runtimes.model_format import load_tokenizer
from recipes.core.errors import UserError


@dataclass(frozen=True)
class CompressionContext:
    """What a method may look at, training utterances, and the files it may rewrite."""

    audio: Sequence[Sequence[str]]
    """References (`eval.audio`) of each utterance."""
    texts: Sequence[str | None]
    """Of each: its label or else its transcript; None where it has neither."""
    clips: int
    """How many of them to calibrate with, evenly spread."""
    processors: Path
    """Folder of the student's tokenizer, feature extractor and generation config."""

    def calibration(self, model: WhisperForConditionalGeneration) -> CalibrationAudio:
        """Log-mels of some utterances in the model's window."""
        return CalibrationAudio.spread(self.audio, model.config, self.clips, "compress:")

    def tokens(self, model: WhisperForConditionalGeneration) -> list[list[int]]:
        """What the decoder reads of the same utterances: the start and the text, in the tokenizer's present words."""
        tokenizer, config = load_tokenizer(self.processors), model.config
        read = [
            tokenizer.encode(f" {text.strip()}", add_special_tokens=False).ids if text else []
            for text in CalibrationAudio.of(self.texts, self.clips)
        ]
        if not any(read):
            raise UserError("compress: needs labels or transcripts of training audio here, found none in the corpus")
        return [[config.decoder_start_token_id, *ids][: config.max_target_positions] for ids in read]


Method = Callable[
    [WhisperForConditionalGeneration, Any, CompressionContext], tuple[WhisperForConditionalGeneration, Any]
]
"""Model, the method's own section and what it may look at, to another model and what was done (JSON)."""

Watch = Callable[[Tensor, Tensor], None]
"""Told the inputs [N, I] and outputs [N, O] of a layer, at all N positions of a clip."""


@torch.no_grad()
def observe_activations(
    model: WhisperForConditionalGeneration,
    calibration: CalibrationAudio,
    watches: Mapping[str, Watch],
    tokens: Sequence[Sequence[int]] | None = None,
) -> None:
    """Pass the clips through the encoder, and their `tokens` through the decoder where there are some.

    Each watch is told of the layer of its name. Positions of padding count as well: a device computes them like any
    other, and attention reads them.
    """

    def tell(watch: Watch) -> Callable[[nn.Module, tuple[Tensor, ...], Any], None]:
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            outputs = output[0] if isinstance(output, tuple) else output
            watch(inputs[0].flatten(0, -2), outputs.flatten(0, -2))

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(tell(watch)) for name, watch in watches.items()]
    try:
        for number, mel_1FT in enumerate(tqdm(calibration, "calibration", unit="clip")):
            states_1SD = model.model.encoder(torch.from_numpy(mel_1FT)).last_hidden_state
            if tokens is not None:
                inputs_1L = torch.tensor([tokens[number]])
                model.model.decoder(input_ids=inputs_1L, encoder_hidden_states=states_1SD, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
