"""Whisper as two graphs of fixed shape: an encoder with the cross-attention projections, and a one-token decoder step.

Both run at batch 1. The self-attention cache of the decoder step is the shift cache of Qualcomm AI Hub: it holds the
N - 1 tokens before the current one, the newest on the right. A step appends its own position and drops the oldest, and
the mask opens from the right, so that a host program only passes the outputs back as inputs. Both graphs are called
with keyword arguments, which become the names of the tensors in the files.

An `OperatorLayout` decides with which operators projections and attention heads are written. `BATCHED_HEADS` keeps
linear layers and multiplies all heads at once; `distill.exporters.mobile_graphs` has the per-head convolutions that
phone accelerators prefer.

F mel bins, T mel frames, S encoder positions, D model width, H heads, K width of a head, L tokens, N cache length,
V vocabulary. Heads that are multiplied at once form a group of G heads; there are H / G groups.
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
"""Largest cache length in tokens, as in Qualcomm's export: a 30 s window seldom has more, and a step moves it all."""

HeadGroups = list[Tensor]
"""One tensor per group of heads: queries [G, 1, L, K], keys [G, 1, K, N] or values [G, 1, N, K]."""


class AttentionProjections(nn.Module):
    """The projections of one attention layer, by group of heads; `attend` computes the attention between them.

    Calling the module applies the output projection: it maps the attended values of each group, [G, 1, L, K], to
    [1, L, D].
    """

    def queries(self, x_1LD: Tensor) -> HeadGroups:
        """Return queries [G, 1, L, K] per group, already scaled by 1 / sqrt(K)."""
        raise NotImplementedError

    def keys(self, x_1ND: Tensor) -> HeadGroups:
        """Return transposed keys [G, 1, K, N] per group."""
        raise NotImplementedError

    def values(self, x_1ND: Tensor) -> HeadGroups:
        """Return values [G, 1, N, K] per group."""
        raise NotImplementedError


@dataclass(frozen=True)
class OperatorLayout:
    """With which operators the layers of the checkpoint are written."""

    attention: Callable[[WhisperAttention], AttentionProjections]
    linear: Callable[[nn.Linear], nn.Module]
    """Returns a module from [1, L, inputs] to [1, L, outputs] whose `weight` is [outputs, inputs, ...]."""


class BatchedHeadProjections(AttentionProjections):
    """Linear layers and a single group of all heads."""

    def __init__(self, source: WhisperAttention):
        super().__init__()
        self.heads = source.num_heads
        self.query, self.key, self.value = scale_outputs(source.q_proj, source.scaling), source.k_proj, source.v_proj
        self.out = source.out_proj

    def queries(self, x_1LD: Tensor) -> HeadGroups:
        """Return scaled queries [H, 1, L, K] as the only group."""
        return [self._split_heads(self.query(x_1LD))]

    def keys(self, x_1ND: Tensor) -> HeadGroups:
        """Return transposed keys [H, 1, K, N] as the only group."""
        return [self._split_heads(self.key(x_1ND)).transpose(2, 3)]

    def values(self, x_1ND: Tensor) -> HeadGroups:
        """Return values [H, 1, N, K] as the only group."""
        return [self._split_heads(self.value(x_1ND))]

    def forward(self, attended: HeadGroups) -> Tensor:
        """Apply the output projection: [H, 1, L, K] to [1, L, D]."""
        (attended_H1LK,) = attended
        projected_1LD: Tensor = self.out(attended_H1LK.permute(1, 2, 0, 3).flatten(2))
        return projected_1LD

    def _split_heads(self, x_1ND: Tensor) -> Tensor:
        """Reshape [1, N, D] to [H, 1, N, K]."""
        return x_1ND.unflatten(2, (self.heads, -1)).permute(2, 0, 1, 3)


BATCHED_HEADS = OperatorLayout(BatchedHeadProjections, lambda linear: linear)


def scale_outputs(linear: nn.Linear | nn.Sequential, scale: float) -> nn.Linear | nn.Sequential:
    """Return a copy whose outputs are multiplied by `scale`.

    Exact for Whisper's heads of width 64, whose scale 1 / 8 is a power of two.
    """
    scaled = copy.deepcopy(linear)
    last = scaled[-1] if isinstance(scaled, nn.Sequential) else scaled  # a Sequential is a low-rank pair
    for parameter in last.parameters():
        parameter.data *= scale
    return scaled


class StaticEncoder(nn.Module):
    """Map a log-mel spectrogram to encoder states and to the cross-attention keys and values of every decoder layer."""

    def __init__(self, model: WhisperForConditionalGeneration, layout: OperatorLayout = BATCHED_HEADS):
        super().__init__()
        encoder = model.model.encoder
        self.convolutions = nn.ModuleList(_convolution_2d(source) for source in (encoder.conv1, encoder.conv2))
        self.register_buffer("positions_SD", encoder.embed_positions.weight.detach())
        self.layers: Any = nn.ModuleList(_SelfAttentionBlock(layer, layout) for layer in encoder.layers)
        self.feed_forwards: Any = nn.ModuleList(_FeedForwardBlock(layer, layout) for layer in encoder.layers)
        self.norm = encoder.layer_norm
        self.cross: Any = nn.ModuleList(layout.attention(layer.encoder_attn) for layer in model.model.decoder.layers)

    def forward(self, input_features: Tensor) -> dict[str, Tensor]:
        """Log-mel [1, F, T] to encoder_states [1, S, D], cross_key_i [H, 1, K, S] and cross_value_i [H, 1, S, K]."""
        x_1F1T = input_features.unsqueeze(2)
        for convolution in self.convolutions:
            x_1F1T = nn.functional.gelu(convolution(x_1F1T))
        x_1SD = x_1F1T.squeeze(2).transpose(1, 2) + self.get_buffer("positions_SD")
        for layer, feed_forward in zip(self.layers, self.feed_forwards, strict=True):
            x_1SD = feed_forward(layer(x_1SD))
        x_1SD = self.norm(x_1SD)
        outputs = {"encoder_states": x_1SD}
        for i, cross in enumerate(self.cross):
            outputs[f"cross_key_{i}"] = _join_groups(cross.keys(x_1SD))
            outputs[f"cross_value_{i}"] = _join_groups(cross.values(x_1SD))
        return outputs


class StaticDecoder(nn.Module):
    """Decode one token after those in the cache."""

    def __init__(self, model: WhisperForConditionalGeneration, layout: OperatorLayout = BATCHED_HEADS):
        super().__init__()
        require_tied_head(model)
        decoder = model.model.decoder
        self.positions = decoder.embed_positions.weight
        self.layers: Any = nn.ModuleList(_SelfAttentionBlock(layer, layout) for layer in decoder.layers)
        self.cross: Any = nn.ModuleList(_CrossAttentionBlock(layer, layout) for layer in decoder.layers)
        self.feed_forwards: Any = nn.ModuleList(_FeedForwardBlock(layer, layout) for layer in decoder.layers)
        self.norm = decoder.layer_norm
        self.head: Any = layout.linear(model.proj_out)

    def forward(
        self, input_ids: Tensor, position: Tensor, attention_mask: Tensor, **caches: Tensor
    ) -> dict[str, Tensor]:
        """Return logits [1, V] and the cache, shifted by the token.

        The cache is new_self_key_i [H, 1, K, N - 1] and new_self_value_i [H, 1, N - 1, K] of each layer i.

        Args:
            input_ids: The token, int32 [1, 1].
            position: Its position in the text, int32 [1].
            attention_mask: Added to the self-attention scores, [1, 1, 1, N].
            caches: The cache tensors, named as `static_interface.decoder_inputs` names them.
        """
        # The embedding reads the head's own weight in either layout, so that a file stores it once.
        embedding = nn.functional.embedding
        x_11D = embedding(input_ids, self.head.weight.flatten(1)) + embedding(position, self.positions)
        outputs: dict[str, Tensor] = {}
        for i, (layer, cross, feed_forward) in enumerate(zip(self.layers, self.cross, self.feed_forwards, strict=True)):
            x_11D, key, value = layer.step(x_11D, attention_mask, caches[f"self_key_{i}"], caches[f"self_value_{i}"])
            outputs |= {f"new_self_key_{i}": key, f"new_self_value_{i}": value}
            x_11D = feed_forward(cross(x_11D, caches[f"cross_key_{i}"], caches[f"cross_value_{i}"]))
        return {"logits": self.head(self.norm(x_11D))[:, 0], **outputs}


class _SelfAttentionBlock(nn.Module):
    def __init__(self, layer: Any, layout: OperatorLayout):
        super().__init__()
        self.norm, self.attention = layer.self_attn_layer_norm, layout.attention(layer.self_attn)

    def forward(self, x_1LD: Tensor) -> Tensor:
        """Let every position attend to every position, as in the encoder."""
        normed_1LD = self.norm(x_1LD)
        attention = self.attention
        attended = attend(attention.queries(normed_1LD), attention.keys(normed_1LD), attention.values(normed_1LD))
        return x_1LD + attention(attended)

    def step(self, x_11D: Tensor, mask: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Process one token after a cache of N - 1 tokens; return its states and the shifted key and value cache."""
        normed_11D = self.norm(x_11D)
        keys = _append(key, self.attention.keys(normed_11D), 3)
        values = _append(value, self.attention.values(normed_11D), 2)
        attended = attend(self.attention.queries(normed_11D), keys, values, mask)
        shifted = _join_groups([key[..., 1:] for key in keys]), _join_groups([value[:, :, 1:] for value in values])
        return x_11D + self.attention(attended), *shifted


class _CrossAttentionBlock(nn.Module):
    def __init__(self, layer: Any, layout: OperatorLayout):
        super().__init__()
        self.norm, self.attention = layer.encoder_attn_layer_norm, layout.attention(layer.encoder_attn)

    def forward(self, x_1LD: Tensor, key: Tensor, value: Tensor) -> Tensor:
        queries = self.attention.queries(self.norm(x_1LD))
        attended = attend(queries, _split_groups(key, len(queries)), _split_groups(value, len(queries)))
        return x_1LD + self.attention(attended)


class _FeedForwardBlock(nn.Module):
    def __init__(self, layer: Any, layout: OperatorLayout):
        super().__init__()
        self.norm, self.activation = layer.final_layer_norm, layer.activation_fn
        self.up, self.down = layout.linear(layer.fc1), layout.linear(layer.fc2)

    def forward(self, x_1LD: Tensor) -> Tensor:
        return x_1LD + self.down(self.activation(self.up(self.norm(x_1LD))))


def attend(queries: HeadGroups, keys: HeadGroups, values: HeadGroups, mask: Tensor | None = None) -> HeadGroups:
    """Return the softmax attention of each group, [G, 1, L, K]; `mask` [1, 1, 1, N] is added to the scores."""
    attended = []
    for query_G1LK, key_G1KN, value_G1NK in zip(queries, keys, values, strict=True):
        scores_G1LN = query_G1LK @ key_G1KN
        scores_G1LN = scores_G1LN if mask is None else scores_G1LN + mask
        attended.append(scores_G1LN.softmax(-1) @ value_G1NK)
    return attended


def _append(cache: Tensor, new: HeadGroups, axis: int) -> HeadGroups:
    return [torch.cat(pair, axis) for pair in zip(_split_groups(cache, len(new)), new, strict=True)]


def _split_groups(cache_H: Tensor, groups: int) -> HeadGroups:
    return [cache_H] if groups == 1 else list(cache_H.chunk(groups))


def _join_groups(groups: Sequence[Tensor]) -> Tensor:
    return groups[0] if len(groups) == 1 else torch.cat(list(groups))


def _convolution_2d(source: nn.Conv1d) -> nn.Conv2d:
    """Write a Conv1d over [1, F, T] as a Conv2d over [1, F, 1, T].

    LiteRT has no one-dimensional convolution and would convert Conv1d to this form between two transposes.
    """
    converted = nn.Conv2d(source.in_channels, source.out_channels, (1, 3), stride=(1, source.stride[0]), padding=(0, 1))
    converted.weight, converted.bias = nn.Parameter(source.weight.detach().unsqueeze(2)), source.bias
    return converted
