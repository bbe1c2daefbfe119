"""Structured pruning: remove the neurons, heads and layers that matter least on training audio.

The pruned weights are removed, not set to zero, so the model is really smaller. Importance is measured so:

- Neurons of a feed-forward block. A neuron adds its activation times its column of fc2 to the residual stream. Its
  importance is the root mean square of the activation times the norm of the column: the error that removing this neuron
  alone would cause.
- Heads of self-attention. A head adds its output times its columns of out_proj. Its importance is the root mean square
  of that product, computed from the second moments of the head's outputs.
- Whole encoder layers. The importance of a layer is how much it turns the residual stream: one minus the cosine
  similarity of its input and output, averaged over all positions ("block influence", Men et al. 2024, arXiv
  2403.03853).

D width, J neurons, H heads, W width of a head, I = H W, N positions.
"""

import copy
from functools import partial
from typing import NotRequired, TypedDict

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import WhisperForConditionalGeneration

from distill.compression.context import CompressionContext, observe_activations
from distill.models.cutting import cut_layers, with_weights
from eval.runtimes.modeling_sottovoce import SottovoceForConditionalGeneration
from recipes.core.errors import UserError
from recipes.schema.compress_section import PruneOptions, require_at_most


class PrunedModule(TypedDict):
    """What compression.json holds of one module."""

    kept: float | bool
    """Of neurons and heads the share of their summed squared importance that was kept; of a layer whether it was."""
    of: NotRequired[int]
    """Number of neurons or heads before pruning."""
    neurons: NotRequired[int]
    """Number of neurons kept."""
    heads: NotRequired[list[int]]
    """Indices of the heads kept."""
    turned: NotRequired[float]
    """Importance of a layer."""


PruneReport = dict[str, PrunedModule]
"""By the name of the module, counted in the model before that step of pruning."""


def prune_model(
    model: WhisperForConditionalGeneration, options: PruneOptions, context: CompressionContext
) -> tuple[WhisperForConditionalGeneration, PruneReport]:
    """Return a copy of the model with only the most important layers, heads and neurons, and a report.

    Encoder layers are pruned first, then heads and neurons of those that are left. Raises UserError if the model has
    low-rank pairs, or fewer layers, heads or neurons than are to be kept.
    """
    if getattr(model.config, "low_rank", None):
        raise UserError("compress.prune: expected a student without low-rank pairs, found some; prune it before")
    report: PruneReport = {}
    for count, prune in (
        (options.encoder_layers, prune_encoder_layers),
        (options.heads, prune_heads),
        (options.ffn_width, partial(prune_neurons, part="encoder")),
        (options.decoder_ffn_width, partial(prune_neurons, part="decoder")),
    ):
        if count is not None:
            model, modules = prune(model, count, context)
            report |= modules
    return model, report


def prune_encoder_layers(
    model: WhisperForConditionalGeneration, count: int, context: CompressionContext
) -> tuple[WhisperForConditionalGeneration, PruneReport]:
    """Keep the `count` encoder layers that turn the residual stream the most."""
    require_at_most("prune.encoder_layers", count, depth := model.config.encoder_layers)
    influence = torch.zeros(depth, dtype=torch.float64)

    def add_influence(index: int, inputs_ND: Tensor, outputs_ND: Tensor) -> None:
        influence[index] += (1 - cosine_similarity(inputs_ND.double(), outputs_ND.double(), dim=1)).mean()

    layers, calibration = _layer_names(model, "encoder"), context.calibration_audio(model)
    observers = {layer: partial(add_influence, index) for index, layer in enumerate(layers)}
    observe_activations(model, calibration, observers)
    kept = influence.topk(count).indices.sort().values.tolist()
    report: PruneReport = {
        layer: {"turned": round(float(influence[index] / len(calibration)), 4), "kept": index in kept}
        for index, layer in enumerate(layers)
    }
    return cut_layers(model, kept, list(range(model.config.decoder_layers))), report


def prune_heads(
    model: WhisperForConditionalGeneration, count: int, context: CompressionContext
) -> tuple[WhisperForConditionalGeneration, PruneReport]:
    """Keep, in each encoder layer, the `count` heads whose outputs move the residual stream the most."""
    attention = model.model.encoder.layers[0].self_attn
    heads, width = attention.num_heads, attention.head_dim
    require_at_most("prune.heads", count, heads)
    blocks = [f"{layer}.self_attn" for layer in _layer_names(model, "encoder")]
    moments = {block: torch.zeros(heads, width, width, dtype=torch.float64) for block in blocks}

    def add_moments(block: str, inputs_NI: Tensor, _outputs_ND: Tensor) -> None:
        outputs_HNW = inputs_NI.double().unflatten(1, (heads, width)).transpose(0, 1)
        moments[block] += outputs_HNW.transpose(1, 2) @ outputs_HNW

    observers = {f"{block}.out_proj": partial(add_moments, block) for block in blocks}
    observe_activations(model, context.calibration_audio(model), observers)
    weights, report = model.state_dict(), PruneReport()
    for block in blocks:
        columns_HDW = weights[f"{block}.out_proj.weight"].double().unflatten(1, (heads, width)).transpose(0, 1)
        energy_H = torch.einsum("hdv,hvw,hdw->h", columns_HDW, moments[block], columns_HDW)
        kept = energy_H.topk(count).indices.sort().values
        rows_I = (kept[:, None] * width + torch.arange(width)).flatten()
        for name in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "v_proj.weight", "v_proj.bias"):
            weights[f"{block}.{name}"] = weights[f"{block}.{name}"][rows_I]
        weights[f"{block}.out_proj.weight"] = weights[f"{block}.out_proj.weight"][:, rows_I]
        share = energy_H[kept].sum() / energy_H.sum()
        report[block] = {"of": heads, "heads": kept.tolist(), "kept": round(share.item(), 6)}
    config = copy.deepcopy(model.config)
    config.encoder_heads = count
    return with_weights(model, SottovoceForConditionalGeneration(config), weights), report


def prune_neurons(
    model: WhisperForConditionalGeneration, count: int, context: CompressionContext, part: str
) -> tuple[WhisperForConditionalGeneration, PruneReport]:
    """Keep, in each layer of `part` (encoder or decoder), the `count` neurons that move the residual stream the most.

    Neurons of the decoder are measured while it reads the labels; raises UserError if there are none.
    """
    key = f"{part}_ffn_dim"
    option = "ffn_width" if part == "encoder" else "decoder_ffn_width"
    require_at_most(f"prune.{option}", count, width := getattr(model.config, key))
    layers = _layer_names(model, part)
    energy = {layer: torch.zeros(width, dtype=torch.float64) for layer in layers}

    def add_squares(layer: str, activations_NJ: Tensor, _outputs_ND: Tensor) -> None:
        energy[layer] += activations_NJ.double().square().sum(0)

    decoder_inputs = context.decoder_inputs(model) if part == "decoder" else None
    observers = {f"{layer}.fc2": partial(add_squares, layer) for layer in layers}
    observe_activations(model, context.calibration_audio(model), observers, decoder_inputs)
    weights, report = model.state_dict(), PruneReport()
    for layer in layers:
        importance_J = energy[layer].sqrt() * weights[f"{layer}.fc2.weight"].double().norm(dim=0)
        kept = importance_J.topk(count).indices.sort().values
        for name in ("fc1.weight", "fc1.bias"):
            weights[f"{layer}.{name}"] = weights[f"{layer}.{name}"][kept]
        weights[f"{layer}.fc2.weight"] = weights[f"{layer}.fc2.weight"][:, kept]
        share = importance_J[kept].square().sum() / importance_J.square().sum()
        report[layer] = {"of": width, "neurons": count, "kept": round(share.item(), 6)}
    config = copy.deepcopy(model.config)
    setattr(config, key, count)
    return with_weights(model, type(model)(config), weights), report


def _layer_names(model: WhisperForConditionalGeneration, part: str) -> list[str]:
    return [f"model.{part}.layers.{index}" for index in range(getattr(model.config, f"{part}_layers"))]
