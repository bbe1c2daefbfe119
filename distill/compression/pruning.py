"""Structured pruning: what matters least on training audio leaves, and what stays is really smaller.

- Neurons of a feed-forward block. One adds its activation times its column of fc2 to the stream. Its importance is the
  root mean square of the first times the norm of the second: the error its absence makes, where it alone is absent.
- Heads of self-attention. One adds its part of the attention's output times its columns of out_proj. Its importance is
  the root mean square of that sum, from the second moments of its outputs.
- Whole layers of the encoder. A layer's importance is what it turns the stream by: one minus the cosine of its input
  and its output, mean over all positions (Men et al. 2024, arXiv 2403.03853, "block influence").

D width, J neurons, H heads, W width of a head, I = H W, N positions.
"""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import WhisperForConditionalGeneration

from distill.compression.context import CompressionContext, observe_activations
from distill.models.cutting import cut_layers, with_weights
from eval.runtimes.modeling_sottovoce import SottovoceForConditionalGeneration
from recipes.core.errors import UserError
from recipes.schema.compress_section import PruneOptions, require_at_most

Report = dict[str, Any]
"""By layer what was kept of what."""


def prune_model(
    model: WhisperForConditionalGeneration, section: PruneOptions, material: CompressionContext
) -> tuple[WhisperForConditionalGeneration, Report]:
    """A copy of the model with the most important layers, heads and neurons alone; what was kept of each."""
    if getattr(model.config, "low_rank", None):
        raise UserError("compress.prune: expected a student of whole layers, found low-rank pairs; prune it before")
    report: Report = {}
    for count, step in (
        (section.encoder_layers, prune_encoder_layers),
        (section.heads, prune_heads),
        (section.ffn_width, partial(prune_neurons, part="encoder")),
        (section.decoder_ffn_width, partial(prune_neurons, part="decoder")),
    ):
        if count is not None:
            model, done = step(model, count, material)
            report |= done
    return model, report


def prune_encoder_layers(
    model: WhisperForConditionalGeneration, count: int, material: CompressionContext
) -> tuple[WhisperForConditionalGeneration, Report]:
    """The layers that turn the stream the most."""
    require_at_most("prune.encoder_layers", count, depth := model.config.encoder_layers)
    turned = torch.zeros(depth, dtype=torch.float64)

    def turn(number: int, before_ND: Tensor, after_ND: Tensor) -> None:
        turned[number] += (1 - cosine_similarity(before_ND.double(), after_ND.double(), dim=1)).mean()

    blocks = list(_blocks(model, "encoder"))
    observe_activations(
        model, material.calibration(model), {block: partial(turn, number) for number, block in enumerate(blocks)}
    )
    kept = turned.topk(count).indices.sort().values.tolist()
    report = {
        block: {"turned": round(float(turned[number] / len(material.calibration(model))), 4), "kept": number in kept}
        for number, block in enumerate(blocks)
    }
    return cut_layers(model, kept, list(range(model.config.decoder_layers))), report


def prune_heads(
    model: WhisperForConditionalGeneration, count: int, material: CompressionContext
) -> tuple[WhisperForConditionalGeneration, Report]:
    """The heads of each encoder layer whose outputs move the stream the most."""
    attention = model.model.encoder.layers[0].self_attn
    number, width = attention.num_heads, attention.head_dim
    require_at_most("prune.heads", count, number)
    layers = [f"{block}.self_attn" for block in _blocks(model, "encoder")]
    seen = {layer: torch.zeros(number, width, width, dtype=torch.float64) for layer in layers}

    def moments(layer: str, inputs_NI: Tensor, _outputs_ND: Tensor) -> None:
        parts_HNW = inputs_NI.double().unflatten(1, (number, width)).transpose(0, 1)
        seen[layer] += parts_HNW.transpose(1, 2) @ parts_HNW

    observe_activations(
        model, material.calibration(model), {f"{layer}.out_proj": partial(moments, layer) for layer in layers}
    )
    weights, report = model.state_dict(), Report()
    for layer in layers:
        columns_HDW = weights[f"{layer}.out_proj.weight"].double().unflatten(1, (number, width)).transpose(0, 1)
        energy_H = torch.einsum("hdv,hvw,hdw->h", columns_HDW, seen[layer], columns_HDW)
        kept_I = _rows(kept := energy_H.topk(count).indices.sort().values, width)
        for name in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "v_proj.weight", "v_proj.bias"):
            weights[f"{layer}.{name}"] = weights[f"{layer}.{name}"][kept_I]
        weights[f"{layer}.out_proj.weight"] = weights[f"{layer}.out_proj.weight"][:, kept_I]
        share = energy_H[kept].sum() / energy_H.sum()
        report[layer] = {"of": number, "heads": kept.tolist(), "kept": round(share.item(), 6)}
    config = copy.deepcopy(model.config)
    config.encoder_heads = count
    return with_weights(model, SottovoceForConditionalGeneration(config), weights), report


def _rows(heads_H: Tensor, width: int) -> Tensor:
    return (heads_H[:, None] * width + torch.arange(width)).flatten()


def prune_neurons(
    model: WhisperForConditionalGeneration, count: int, material: CompressionContext, part: str
) -> tuple[WhisperForConditionalGeneration, Report]:
    """The neurons of each layer of a part, encoder or decoder, that move the stream the most."""
    key = f"{part}_ffn_dim"
    option = "ffn_width" if part == "encoder" else "decoder_ffn_width"
    require_at_most(f"prune.{option}", count, width := getattr(model.config, key))
    blocks = list(_blocks(model, part))
    energy = {block: torch.zeros(width, dtype=torch.float64) for block in blocks}

    def squares(block: str, activations_NJ: Tensor, _outputs_ND: Tensor) -> None:
        energy[block] += activations_NJ.double().square().sum(0)

    tokens = material.tokens(model) if part == "decoder" else None
    watches = {f"{block}.fc2": partial(squares, block) for block in blocks}
    observe_activations(model, material.calibration(model), watches, tokens)
    weights, report = model.state_dict(), Report()
    for block in blocks:
        importance_J = energy[block].sqrt() * weights[f"{block}.fc2.weight"].double().norm(dim=0)
        kept = importance_J.topk(count).indices.sort().values
        for name in ("fc1.weight", "fc1.bias"):
            weights[f"{block}.{name}"] = weights[f"{block}.{name}"][kept]
        weights[f"{block}.fc2.weight"] = weights[f"{block}.fc2.weight"][:, kept]
        share = importance_J[kept].square().sum() / importance_J.square().sum()
        report[block] = {"of": width, "neurons": count, "kept": round(share.item(), 6)}
    config = copy.deepcopy(model.config)
    setattr(config, key, count)
    return with_weights(model, type(model)(config), weights), report


def _blocks(model: WhisperForConditionalGeneration, part: str) -> Iterator[str]:
    return (f"model.{part}.layers.{number}" for number in range(getattr(model.config, f"{part}_layers")))
