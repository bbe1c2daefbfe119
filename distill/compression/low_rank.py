"""Linear layers of the encoder as pairs of narrow ones (after LiteASR, Kamahori et al. 2025, arXiv 2502.20583).

A layer's outputs y = W x + b on audio vary in few directions. With V the first R principal axes of the centred outputs

    y ~ m + V V^T (y - m) = V (V^T W) x + m + V V^T (b - m)

so that V^T W, without a bias, and V, with all the rest as its bias, take the layer's place. Unlike the published code
this looks at training audio, at one clip at a time, and leaves a student that is to be healed by the trainer. Attention
in the reduced dimension is left out: it saves where ranks of queries and keys are below the width of a head (64 for all
Whispers), and needs an operator of attention that no runtime here offers.

N positions, I inputs, O outputs, D the smaller of both, K principal axes, R rank.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration

from distill.compression.context import CompressionContext, observe_activations
from distill.models.cutting import with_weights
from eval.runtimes.modeling_sottovoce import KEYS, SottovoceForConditionalGeneration, low_rank_pair
from recipes.schema.compress_section import LowRankOptions

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "out_proj"), ("fc1", "fc2")


def saves_weights(rank: int, layer: nn.Linear) -> bool:
    """Whether a pair of this rank holds fewer weights than the layer."""
    return rank * (layer.in_features + layer.out_features) < layer.in_features * layer.out_features


def factor_encoder(
    model: WhisperForConditionalGeneration,
    section: LowRankOptions,
    material: CompressionContext,
    worth: Callable[[int, nn.Linear], bool] = saves_weights,
) -> tuple[WhisperForConditionalGeneration, dict[str, Any]]:
    """A copy of the model with pairs where they are worth it, and by layer the rank and the share of variance kept."""
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if name.startswith("model.encoder.layers.") and isinstance(layer, nn.Linear)
        if name.endswith(ATTENTION + MLP)
    }
    seen = {name: Covariance(min(layer.in_features, layer.out_features)) for name, layer in layers.items()}
    observe_activations(model, material.calibration(model), {name: partial(_narrower, seen[name]) for name in layers})
    pairs, report = dict[str, nn.Sequential](), dict[str, Any]()
    for name, layer in layers.items():
        axes = principal_axes(layer, seen[name])
        rank = axes.rank(section.shares[name.endswith(MLP)], section.multiple)
        if worth(rank, layer):
            pairs[name] = factor_layer(layer, axes, rank)
        kept = axes.kept_K[rank - 1].item() if name in pairs else 1.0
        report[name] = {"of": len(axes.kept_K), "rank": rank, "replaced": name in pairs, "kept": round(kept, 6)}
    return (replace_with_pairs(model, pairs) if pairs else model), report


class Covariance:
    """Mean and covariance of rows that come in chunks, in float64 (Chan, Golub and LeVeque 1979): [D, D], no more."""

    def __init__(self, width: int):
        self.count = 0
        self.mean_D = torch.zeros(width, dtype=torch.float64)
        self._scatter_DD = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows_ND: Tensor) -> None:
        """Take in some more rows."""
        rows_ND = rows_ND.double()
        count, mean_D = len(rows_ND), rows_ND.mean(0)
        centred_ND, apart_D = rows_ND - mean_D, mean_D - self.mean_D
        total = self.count + count
        self._scatter_DD += centred_ND.T @ centred_ND + torch.outer(apart_D, apart_D) * (self.count * count / total)
        self.mean_D += apart_D * (count / total)
        self.count = total

    def covariance(self) -> Tensor:
        """[D, D], of all rows so far."""
        return self._scatter_DD / self.count


def _narrower(seen: Covariance, inputs_NI: Tensor, outputs_NO: Tensor) -> None:
    seen.add(inputs_NI if inputs_NI.shape[1] < outputs_NO.shape[1] else outputs_NO)


@dataclass(frozen=True)
class PrincipalAxes:
    """Principal axes of a layer's outputs, the widest first."""

    mean_O: Tensor
    axes_OK: Tensor
    kept_K: Tensor
    """Share of the variance that the axes up to each one keep."""

    def rank(self, share: float, multiple: int) -> int:
        """The smallest multiple that keeps so much of the variance; all axes where none does."""
        needed = int((self.kept_K < share).sum()) + 1
        return min(-(-needed // multiple) * multiple, len(self.kept_K))


def principal_axes(layer: nn.Linear, seen: Covariance) -> PrincipalAxes:
    """Of the layer's outputs, from their covariance C or, where inputs are fewer, from that of its inputs.

    Of the latter W C W^T is the outputs' own: fc1 needs a [D, D] matrix so, not one of [4 D, 4 D].
    """
    values_D, vectors_DD = torch.linalg.eigh(seen.covariance())
    root, mean = vectors_DD * values_D.clamp_min(0).sqrt(), seen.mean_D
    if layer.in_features < layer.out_features:
        weight_OI = layer.weight.detach().double()
        root, mean = weight_OI @ root, weight_OI @ mean + _bias(layer)
    axes_OK, deviations_K, _ = torch.linalg.svd(root, full_matrices=False)
    variances_K = deviations_K.square()
    return PrincipalAxes(mean, axes_OK, variances_K.cumsum(0) / variances_K.sum())


def factor_layer(layer: nn.Linear, axes: PrincipalAxes, rank: int) -> nn.Sequential:
    """The layer as a pair, see the module's head."""
    new = low_rank_pair(layer.in_features, layer.out_features, rank)
    basis_OR = axes.axes_OK[:, :rank]
    rest_O = axes.mean_O + basis_OR @ (basis_OR.T @ (_bias(layer) - axes.mean_O))
    weights = {"0.weight": basis_OR.T @ layer.weight.detach().double(), "1.weight": basis_OR, "1.bias": rest_O}
    new.load_state_dict(weights)
    return new


def _bias(layer: nn.Linear) -> Tensor:
    zero_O = torch.zeros(layer.out_features, dtype=torch.float64)
    return zero_O if layer.bias is None else layer.bias.detach().double()


def replace_with_pairs(
    model: WhisperForConditionalGeneration, pairs: dict[str, nn.Sequential]
) -> SottovoceForConditionalGeneration:
    """A copy of the model with these pairs for its layers of their names."""
    config = copy.deepcopy(model.config)
    config.low_rank = (getattr(config, "low_rank", None) or {}) | {
        name: new[0].out_features for name, new in pairs.items()
    }
    weights = {name: value for name, value in model.state_dict().items() if name.rpartition(".")[0] not in pairs}
    weights |= {f"{name}.{part}": value for name, new in pairs.items() for part, value in new.state_dict().items()}
    return with_weights(model, SottovoceForConditionalGeneration(config), weights)


def expand_pairs(model: WhisperForConditionalGeneration, runtime: str) -> WhisperForConditionalGeneration:
    """A copy in Whisper's own layers, for a runtime that knows no others; itself where it has no others.

    Pairs are multiplied out, and heads that were pruned come back as zeros, which add nothing.
    """
    if not isinstance(model, SottovoceForConditionalGeneration):
        return model
    tqdm.write(f"{runtime}: has Whisper's layers alone; low-rank pairs and pruned heads save nothing there")
    config, weights = copy.deepcopy(model.config), model.state_dict()
    for name in getattr(config, "low_rank", None) or {}:
        weights[f"{name}.weight"] = weights.pop(f"{name}.1.weight") @ weights.pop(f"{name}.0.weight")
        bias_O = weights.pop(f"{name}.1.bias")
        # Whisper's k_proj has none: it would move all scores of a query alike, which softmax undoes.
        if not name.endswith("k_proj"):
            weights[f"{name}.bias"] = bias_O
    for key in KEYS:
        vars(config).pop(key, None)
    whole = WhisperForConditionalGeneration(config)
    for name, wanted in whole.state_dict().items():
        if (have := weights[name]).shape != wanted.shape:
            weights[name] = torch.zeros_like(wanted)
            weights[name][tuple(map(slice, have.shape))] = have
    return with_weights(model, whole, weights)
