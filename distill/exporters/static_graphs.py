"""Whisper as two graphs of static shape: an encoder that also projects cross-attention, and a step for one token.

Both run at batch 1. The step's self-attention cache is Qualcomm AI Hub's shift cache: it holds the N - 1 tokens before
this one, the newest on the right; a step appends its own position and drops the oldest, and the mask opens from the
right. So a host only hands the outputs back as inputs. Both are called with keyword arguments, which name the files'
tensors.

How projections and heads are written is a `Form`. `BATCHED` multiplies all heads at once after plain linear layers;
`distill.exporters.mobile_graphs` writes the same graphs as accelerators want them.

F mel bins, T mel frames, S encoder positions, D width, H heads, K width of a head, L tokens, N cache length,
V vocabulary. A group is the heads that are multiplied at once: G heads of the H.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperAttention

from distill.exporters.whisper_graphs import require_tied_head

MAX_CACHE = 200
"""Tokens, as Qualcomm's: a 30 s window seldom holds more, and a step moves the whole cache."""

Groups = list[Tensor]
"""Queries [G, 1, L, K], keys [G, 1, K, N] or values [G, 1, N, K], one a group of heads."""


class Attention(nn.Module):
    """One attention of the checkpoint; calling it joins what the groups found, [G, 1, L, K] each, to [1, L, D]."""

    def queries(self, x_1LD: Tensor) -> Groups:
        """Scaled by 1 / sqrt(K) already."""
        raise NotImplementedError

    def keys(self, x_1ND: Tensor) -> Groups:
        """[G, 1, K, N] each."""
        raise NotImplementedError

    def values(self, x_1ND: Tensor) -> Groups:
        """[G, 1, N, K] each."""
        raise NotImplementedError


@dataclass(frozen=True)
class Form:
    """How the pieces of the checkpoint are written."""

    attention: Callable[[WhisperAttention], Attention]
    linear: Callable[[nn.Linear], nn.Module]
    """Gives a module from [1, L, inputs] to [1, L, outputs], with its `weight` [outputs, inputs, ...]."""


class BatchedAttention(Attention):
    """All heads in one group, after linear layers."""

    def __init__(self, source: WhisperAttention):
        super().__init__()
        self.heads = source.num_heads
        self.query, self.key, self.value = scaled(source.q_proj, source.scaling), source.k_proj, source.v_proj
        self.out = source.out_proj

    def queries(self, x_1LD: Tensor) -> Groups:
        """One group."""
        return [self._split(self.query(x_1LD))]

    def keys(self, x_1ND: Tensor) -> Groups:
        """One group."""
        return [self._split(self.key(x_1ND)).transpose(2, 3)]

    def values(self, x_1ND: Tensor) -> Groups:
        """One group."""
        return [self._split(self.value(x_1ND))]

    def forward(self, mixed: Groups) -> Tensor:
        """The output projection."""
        (mixed_H1LK,) = mixed
        mixed_1LD: Tensor = self.out(mixed_H1LK.permute(1, 2, 0, 3).flatten(2))
        return mixed_1LD

    def _split(self, x_1ND: Tensor) -> Tensor:
        """[1, N, D] to [H, 1, N, K]."""
        return x_1ND.unflatten(2, (self.heads, -1)).permute(2, 0, 1, 3)


BATCHED = Form(BatchedAttention, lambda linear: linear)


def scaled(linear: nn.Linear | nn.Sequential, scale: float) -> nn.Linear | nn.Sequential:
    """A copy whose outputs are `scale` times as large; exact where heads are 64 wide, as 1 / 8 is a power of two."""
    new = copy.deepcopy(linear)
    last = new[-1] if isinstance(new, nn.Sequential) else new  # of a low-rank pair
    for parameter in last.parameters():
        parameter.data *= scale
    return new


class StaticEncoder(nn.Module):
    """Log-mel to encoder states, and to the cross-attention keys and values of every decoder layer."""

    def __init__(self, model: WhisperForConditionalGeneration, form: Form = BATCHED):
        super().__init__()
        encoder = model.model.encoder
        self.convolutions = nn.ModuleList(_flat(source) for source in (encoder.conv1, encoder.conv2))
        self.register_buffer("positions_SD", encoder.embed_positions.weight.detach())
        self.layers: Any = nn.ModuleList(_SelfBlock(layer, form) for layer in encoder.layers)
        self.forwards: Any = nn.ModuleList(_FeedForward(layer, form) for layer in encoder.layers)
        self.norm = encoder.layer_norm
        self.cross: Any = nn.ModuleList(form.attention(layer.encoder_attn) for layer in model.model.decoder.layers)

    def forward(self, input_features: Tensor) -> dict[str, Tensor]:
        """Log-mel [1, F, T] to encoder_states [1, S, D], cross_key_i [H, 1, K, S] and cross_value_i [H, 1, S, K]."""
        x_1F1T = input_features.unsqueeze(2)
        for convolution in self.convolutions:
            x_1F1T = nn.functional.gelu(convolution(x_1F1T))
        x_1SD = x_1F1T.squeeze(2).transpose(1, 2) + self.get_buffer("positions_SD")
        for layer, feed_forward in zip(self.layers, self.forwards, strict=True):
            x_1SD = feed_forward(layer(x_1SD))
        x_1SD = self.norm(x_1SD)
        outputs = {"encoder_states": x_1SD}
        for i, cross in enumerate(self.cross):
            outputs[f"cross_key_{i}"] = _join(cross.keys(x_1SD))
            outputs[f"cross_value_{i}"] = _join(cross.values(x_1SD))
        return outputs


class StaticDecoder(nn.Module):
    """One token after those in the cache."""

    def __init__(self, model: WhisperForConditionalGeneration, form: Form = BATCHED):
        super().__init__()
        require_tied_head(model)
        decoder = model.model.decoder
        self.positions = decoder.embed_positions.weight
        self.layers: Any = nn.ModuleList(_SelfBlock(layer, form) for layer in decoder.layers)
        self.cross: Any = nn.ModuleList(_CrossBlock(layer, form) for layer in decoder.layers)
        self.forwards: Any = nn.ModuleList(_FeedForward(layer, form) for layer in decoder.layers)
        self.norm = decoder.layer_norm
        self.head: Any = form.linear(model.proj_out)

    def forward(
        self, input_ids: Tensor, position: Tensor, attention_mask: Tensor, **caches: Tensor
    ) -> dict[str, Tensor]:
        """Token int32 [1, 1], its place in the text int32 [1], mask [1, 1, 1, N], caches as `inputs_of` names them.

        Gives logits [1, V] and the shifted new_self_key_i [H, 1, K, N - 1], new_self_value_i [H, 1, N - 1, K].
        """
        # The lookup reads the head's own weight, whatever its form, so that a file holds it once.
        embedding = nn.functional.embedding
        x_11D = embedding(input_ids, self.head.weight.flatten(1)) + embedding(position, self.positions)
        outputs: dict[str, Tensor] = {}
        for i, (layer, cross, feed_forward) in enumerate(zip(self.layers, self.cross, self.forwards, strict=True)):
            x_11D, key, value = layer.step(x_11D, attention_mask, caches[f"self_key_{i}"], caches[f"self_value_{i}"])
            outputs |= {f"new_self_key_{i}": key, f"new_self_value_{i}": value}
            x_11D = feed_forward(cross(x_11D, caches[f"cross_key_{i}"], caches[f"cross_value_{i}"]))
        return {"logits": self.head(self.norm(x_11D))[:, 0], **outputs}


class _SelfBlock(nn.Module):
    def __init__(self, layer: Any, form: Form):
        super().__init__()
        self.norm, self.attention = layer.self_attn_layer_norm, form.attention(layer.self_attn)

    def forward(self, x_1LD: Tensor) -> Tensor:
        """Every position sees every other."""
        normed_1LD = self.norm(x_1LD)
        attention = self.attention
        mixed = attend(attention.queries(normed_1LD), attention.keys(normed_1LD), attention.values(normed_1LD))
        return x_1LD + attention(mixed)

    def step(self, x_11D: Tensor, mask: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One token after a cache of N - 1, and the cache shifted by it."""
        normed_11D = self.norm(x_11D)
        keys = _append(key, self.attention.keys(normed_11D), 3)
        values = _append(value, self.attention.values(normed_11D), 2)
        mixed = attend(self.attention.queries(normed_11D), keys, values, mask)
        shifted = _join([key[..., 1:] for key in keys]), _join([value[:, :, 1:] for value in values])
        return x_11D + self.attention(mixed), *shifted


class _CrossBlock(nn.Module):
    def __init__(self, layer: Any, form: Form):
        super().__init__()
        self.norm, self.attention = layer.encoder_attn_layer_norm, form.attention(layer.encoder_attn)

    def forward(self, x_1LD: Tensor, key: Tensor, value: Tensor) -> Tensor:
        queries = self.attention.queries(self.norm(x_1LD))
        mixed = attend(queries, _part(key, len(queries)), _part(value, len(queries)))
        return x_1LD + self.attention(mixed)


class _FeedForward(nn.Module):
    def __init__(self, layer: Any, form: Form):
        super().__init__()
        self.norm, self.activation = layer.final_layer_norm, layer.activation_fn
        self.up, self.down = form.linear(layer.fc1), form.linear(layer.fc2)

    def forward(self, x_1LD: Tensor) -> Tensor:
        return x_1LD + self.down(self.activation(self.up(self.norm(x_1LD))))


def attend(queries: Groups, keys: Groups, values: Groups, mask: Tensor | None = None) -> Groups:
    """Softmax attention of each group, [G, 1, L, K]; `mask` [1, 1, 1, N] is added to the scores."""
    mixed = []
    for query_G1LK, key_G1KN, value_G1NK in zip(queries, keys, values, strict=True):
        scores_G1LN = query_G1LK @ key_G1KN
        scores_G1LN = scores_G1LN if mask is None else scores_G1LN + mask
        mixed.append(scores_G1LN.softmax(-1) @ value_G1NK)
    return mixed


def _append(cache: Tensor, new: Groups, axis: int) -> Groups:
    return [torch.cat(pair, axis) for pair in zip(_part(cache, len(new)), new, strict=True)]


def _part(cache_H: Tensor, groups: int) -> Groups:
    return [cache_H] if groups == 1 else list(cache_H.chunk(groups))


def _join(groups: Sequence[Tensor]) -> Tensor:
    return groups[0] if len(groups) == 1 else torch.cat(list(groups))


def _flat(source: nn.Conv1d) -> nn.Conv2d:
    """The convolution over [1, F, 1, T]: LiteRT has no other, and converts Conv1d to it between two transposes."""
    new = nn.Conv2d(source.in_channels, source.out_channels, (1, 3), stride=(1, source.stride[0]), padding=(0, 1))
    new.weight, new.bias = nn.Parameter(source.weight.detach().unsqueeze(2)), source.bias
    return new
