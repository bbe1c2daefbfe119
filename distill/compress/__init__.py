"""The student made smaller after training: one method a module, each a `Method`, chained by the stage."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration

from distill.calibration import Calibration

Method = Callable[[WhisperForConditionalGeneration, Any, Calibration], tuple[WhisperForConditionalGeneration, Any]]
"""Model, the method's own section and audio to look at, to another model and what was done (JSON)."""

Watch = Callable[[Tensor, Tensor], None]
"""Told the inputs [N, I] and outputs [N, O] of a layer, at all N positions of a clip."""


@torch.no_grad()
def observe(model: WhisperForConditionalGeneration, calibration: Calibration, watches: Mapping[str, Watch]) -> None:
    """Pass the clips through the encoder; each watch is told of the layer of its name.

    Positions of padding count as well: a device computes them like any other, and attention reads them.
    """

    def tell(watch: Watch) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _layer, inputs, output: watch(inputs[0].flatten(0, -2), output.flatten(0, -2))

    hooks = [model.get_submodule(name).register_forward_hook(tell(watch)) for name, watch in watches.items()]
    try:
        for mel_1FT in tqdm(calibration, "calibration", unit="clip"):
            model.model.encoder(torch.from_numpy(mel_1FT))
    finally:
        for hook in hooks:
            hook.remove()
