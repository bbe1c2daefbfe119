"""Factor linear layers of the encoder into pairs of narrow layers (LiteASR, Kamahori et al. 2025, arXiv 2502.20583).

On real audio, the outputs y = W x + b of a layer vary in few directions. With V the first R principal axes of the
centred outputs and m their mean,

    y ~ m + V V^T (y - m) = V (V^T W) x + m + V V^T (b - m)

so the layer is replaced by two: V^T W without a bias, then V with the constant term as its bias.

Unlike the published code, this module measures on training audio, holds one clip at a time in memory, and leaves a
student that the trainer then heals. Attention in the reduced dimension is not implemented: it saves time only if the
ranks of queries and keys are below the width of a head (64 in every Whisper), and it needs an attention operator that
none of the supported runtimes has.

N positions, I inputs, O outputs, D the smaller of the two, K principal axes, R rank.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from distill.compression.context import CompressionContext, observe_activations
from distill.models.cutting import with_weights
from eval.runtimes.modeling_sottovoce import KEYS, SottovoceForConditionalGeneration, low_rank_pair
from recipes.core.logs import log
from recipes.schema.compress_section import LowRankOptions

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "out_proj"), ("fc1", "fc2")


class FactoredLayer(TypedDict):
    """What compression.json holds of one linear layer."""

    of: int
    """Full rank."""
    rank: int
    """Rank that keeps the wanted share of the variance."""
    replaced: bool
    kept: float
    """Share of the variance that the pair keeps; 1.0 if the layer was not replaced."""


def saves_weights(rank: int, layer: nn.Linear) -> bool:
    """Return whether a pair of this rank has fewer weights than the layer."""
    return rank * (layer.in_features + layer.out_features) < layer.in_features * layer.out_features


def factor_encoder(
    model: WhisperForConditionalGeneration,
    options: LowRankOptions,
    context: CompressionContext,
    should_replace: Callable[[int, nn.Linear], bool] = saves_weights,
) -> tuple[WhisperForConditionalGeneration, dict[str, FactoredLayer]]:
    """Replace the encoder's linear layers by low-rank pairs where `should_replace(rank, layer)` says so.

    Returns a copy of the model (the model itself if nothing is replaced) and a report by layer name.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if name.startswith("model.encoder.layers.") and isinstance(layer, nn.Linear)
        if name.endswith(ATTENTION + MLP)
    }
    statistics = {name: Covariance(min(layer.in_features, layer.out_features)) for name, layer in layers.items()}
    observers = {name: partial(_add_narrower_side, statistics[name]) for name in layers}
    observe_activations(model, context.calibration_audio(model), observers)
    pairs, report = dict[str, nn.Sequential](), dict[str, FactoredLayer]()
    for name, layer in layers.items():
        axes = principal_axes(layer, statistics[name])
        rank = axes.smallest_rank(options.shares[name.endswith(MLP)], options.multiple)
        if replaced := should_replace(rank, layer):
            pairs[name] = factor_layer(layer, axes, rank)
        share = axes.explained_K[rank - 1].item() if replaced else 1.0
        report[name] = {"of": len(axes.explained_K), "rank": rank, "replaced": replaced, "kept": round(share, 6)}
    return (replace_with_pairs(model, pairs) if pairs else model), report


class Covariance:
    """Mean and covariance of rows that arrive in chunks, in float64 (Chan, Golub and LeVeque 1979).

    Only a [D, D] matrix and a mean are held, however many rows are added.
    """

    def __init__(self, width: int):
        self.count = 0
        self.mean_D = torch.zeros(width, dtype=torch.float64)
        self._scatter_DD = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows_ND: Tensor) -> None:
        """Add a chunk of rows."""
        rows_ND = rows_ND.double()
        count, mean_D = len(rows_ND), rows_ND.mean(0)
        centred_ND, shift_D = rows_ND - mean_D, mean_D - self.mean_D
        total = self.count + count
        self._scatter_DD += centred_ND.T @ centred_ND + torch.outer(shift_D, shift_D) * (self.count * count / total)
        self.mean_D += shift_D * (count / total)
        self.count = total

    def covariance(self) -> Tensor:
        """Return the covariance [D, D] of all rows so far."""
        return self._scatter_DD / self.count


def _add_narrower_side(statistics: Covariance, inputs_NI: Tensor, outputs_NO: Tensor) -> None:
    """Add a layer's inputs if they are narrower than its outputs, else its outputs."""
    statistics.add(inputs_NI if inputs_NI.shape[1] < outputs_NO.shape[1] else outputs_NO)


@dataclass(frozen=True)
class PrincipalAxes:
    """Principal axes of a layer's outputs, in order of decreasing variance."""

    mean_O: Tensor
    axes_OK: Tensor
    explained_K: Tensor
    """Cumulative share of the variance: entry k is the share that the first k + 1 axes explain."""

    def smallest_rank(self, share: float, multiple: int) -> int:
        """Return the smallest multiple of `multiple` that explains `share` of the variance, at most all K axes."""
        needed = int((self.explained_K < share).sum()) + 1
        return min(-(-needed // multiple) * multiple, len(self.explained_K))


def principal_axes(layer: nn.Linear, statistics: Covariance) -> PrincipalAxes:
    """Return the principal axes of a layer's outputs, from the statistics of its narrower side.

    If that side is the inputs, with covariance C, the covariance of the outputs is W C W^T. So fc1 needs a [D, D]
    matrix instead of one of [4 D, 4 D].
    """
    values_D, vectors_DD = torch.linalg.eigh(statistics.covariance())
    root, mean = vectors_DD * values_D.clamp_min(0).sqrt(), statistics.mean_D
    if layer.in_features < layer.out_features:
        weight_OI = layer.weight.detach().double()
        root, mean = weight_OI @ root, weight_OI @ mean + _bias(layer)
    axes_OK, deviations_K, _ = torch.linalg.svd(root, full_matrices=False)
    variances_K = deviations_K.square()
    return PrincipalAxes(mean, axes_OK, variances_K.cumsum(0) / variances_K.sum())


def factor_layer(layer: nn.Linear, axes: PrincipalAxes, rank: int) -> nn.Sequential:
    """Return the pair of layers of this rank that approximates the layer (equation at the top of the module)."""
    pair = low_rank_pair(layer.in_features, layer.out_features, rank)
    basis_OR = axes.axes_OK[:, :rank]
    constant_O = axes.mean_O + basis_OR @ (basis_OR.T @ (_bias(layer) - axes.mean_O))
    pair.load_state_dict(
        {"0.weight": basis_OR.T @ layer.weight.detach().double(), "1.weight": basis_OR, "1.bias": constant_O}
    )
    return pair


def _bias(layer: nn.Linear) -> Tensor:
    """Return the bias in float64, zeros if the layer has none."""
    zero_O = torch.zeros(layer.out_features, dtype=torch.float64)
    return zero_O if layer.bias is None else layer.bias.detach().double()


def replace_with_pairs(
    model: WhisperForConditionalGeneration, pairs: dict[str, nn.Sequential]
) -> SottovoceForConditionalGeneration:
    """Return a copy of the model in which each named layer is replaced by its pair."""
    config = copy.deepcopy(model.config)
    config.low_rank = (getattr(config, "low_rank", None) or {}) | {
        name: pair[0].out_features for name, pair in pairs.items()
    }
    weights = {name: value for name, value in model.state_dict().items() if name.rpartition(".")[0] not in pairs}
    weights |= {f"{name}.{key}": value for name, pair in pairs.items() for key, value in pair.state_dict().items()}
    return with_weights(model, SottovoceForConditionalGeneration(config), weights)


def expand_pairs(model: WhisperForConditionalGeneration, runtime: str) -> WhisperForConditionalGeneration:
    """Return the model in Whisper's own architecture, for a `runtime` that supports no other.

    Low-rank pairs are multiplied out, and pruned heads return as zeros, which add nothing. A plain Whisper is returned
    as it is.
    """
    if not isinstance(model, SottovoceForConditionalGeneration):
        return model
    log.warning(f"{runtime}: supports Whisper's own layers only; low-rank pairs and pruned heads save nothing there")
    config, weights = copy.deepcopy(model.config), model.state_dict()
    for name in getattr(config, "low_rank", None) or {}:
        weights[f"{name}.weight"] = weights.pop(f"{name}.1.weight") @ weights.pop(f"{name}.0.weight")
        bias_O = weights.pop(f"{name}.1.bias")
        # Whisper's k_proj has no bias: it would add the same to all scores of a query, which softmax cancels.
        if not name.endswith("k_proj"):
            weights[f"{name}.bias"] = bias_O
    for key in KEYS:
        vars(config).pop(key, None)
    plain = WhisperForConditionalGeneration(config)
    for name, expected in plain.state_dict().items():
        if (pruned := weights[name]).shape != expected.shape:
            weights[name] = torch.zeros_like(expected)
            weights[name][tuple(map(slice, pruned.shape))] = pruned
    return with_weights(model, plain, weights)
