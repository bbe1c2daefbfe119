"""Whisper as three plain graphs: the encoder, the decoder's first step, and a decoder step with a cache.

The graphs call the checkpoint's own submodules. They use no cache class, no mask helper and no attention dispatch, so
that any tracer sees only matrix products, softmax and layer norms. Weights are shared with the model, never copied.

B batch, F mel bins, T mel frames, S encoder positions, L tokens, P past tokens, N = P + L keys, D model width, H heads,
K width of a head, V vocabulary.
"""

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperDecoderLayer

MASKED_SCORE = -1e4
"""Added to the attention score of a future token. exp(-1e4) is 0 in float32, and unlike finfo.min it fits float16."""


class EncoderGraph(nn.Module):
    """Map a log-mel spectrogram [B, F, T] to encoder states [B, S, D], T = 2 S, like the checkpoint's own encoder."""

    def __init__(self, model: WhisperForConditionalGeneration):
        super().__init__()
        self.encoder = model.model.encoder

    def forward(self, input_features: Tensor) -> Tensor:
        """Map log-mel float [B, F, T] to encoder states [B, S, D]."""
        encoder, gelu = self.encoder, nn.functional.gelu
        x_BDS = gelu(encoder.conv2(gelu(encoder.conv1(input_features))))
        x_BSD = x_BDS.transpose(1, 2) + encoder.embed_positions.weight
        for layer in encoder.layers:
            x_BSD = x_BSD + self.self_attention(layer.self_attn, layer.self_attn_layer_norm(x_BSD))
            x_BSD = x_BSD + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x_BSD))))
        return encoder.layer_norm(x_BSD)

    def self_attention(self, attention: WhisperAttention, x_BSD: Tensor) -> Tensor:
        """Return the self-attention of normalised states, after the output projection."""
        return _attend(attention, x_BSD, *_project_keys_values(attention, x_BSD))


class DecoderFirstGraph(nn.Module):
    """Decode the prompt without a cache; only this step projects encoder states to cross-attention keys and values."""

    def __init__(self, model: WhisperForConditionalGeneration):
        super().__init__()
        require_tied_head(model)
        self.decoder = model.model.decoder

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, ...]:
        """Map tokens [B, L] and encoder states [B, S, D] to logits [B, L, V] and the cache that `body` returns."""
        hidden_BLD, *cache = self.body(self.decoder.embed_tokens(input_ids), encoder_hidden_states)
        return (hidden_BLD @ self.decoder.embed_tokens.weight.T, *cache)

    def body(self, embedded_BLD: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, ...]:
        """Run the decoder between token embedding and head; return hidden states [B, L, D] and the cache.

        The cache is four tensors for layer 0, then four for layer 1, and so on: self-attention key and value
        [B, H, L, K], cross-attention key and value [B, H, S, K].
        """
        decoder, length = self.decoder, embedded_BLD.shape[1]
        mask_LL = _causal_mask(length, 0)
        x_BLD = embedded_BLD + decoder.embed_positions.weight[:length]
        cache: list[Tensor] = []
        for layer in decoder.layers:
            normed_BLD = layer.self_attn_layer_norm(x_BLD)
            self_pair = _project_keys_values(layer.self_attn, normed_BLD)
            x_BLD = x_BLD + _attend(layer.self_attn, normed_BLD, *self_pair, mask_LL)
            cross_pair = _project_keys_values(layer.encoder_attn, encoder_hidden_states)
            x_BLD = _cross_attention_and_feed_forward(layer, x_BLD, *cross_pair)
            cache += [*self_pair, *cross_pair]
        return (decoder.layer_norm(x_BLD), *cache)


class DecoderWithPastGraph(nn.Module):
    """Decode tokens after a cache; cross-attention keys and values come from the first step and are not returned."""

    def __init__(self, model: WhisperForConditionalGeneration):
        super().__init__()
        require_tied_head(model)
        self.decoder = model.model.decoder

    def forward(self, input_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Map tokens [B, L], L >= 1, and four cache tensors per layer to logits [B, L, V] and the cache of `body`."""
        hidden_BLD, *cache = self.body(self.decoder.embed_tokens(input_ids), *past)
        return (hidden_BLD @ self.decoder.embed_tokens.weight.T, *cache)

    def body(self, embedded_BLD: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Run the decoder between token embedding and head.

        `past` is ordered as the cache that `DecoderFirstGraph.body` returns; the first new token has position P.
        Return hidden states [B, L, D], then the self-attention key and value [B, H, P + L, K] of each layer.
        """
        decoder, length, past_length = self.decoder, embedded_BLD.shape[1], past[0].shape[2]
        mask_LN = _causal_mask(length, past_length)
        x_BLD = embedded_BLD + decoder.embed_positions.weight[past_length : past_length + length]
        cache: list[Tensor] = []
        for layer, key, value, cross_key, cross_value in zip(
            decoder.layers, past[0::4], past[1::4], past[2::4], past[3::4], strict=True
        ):
            normed_BLD = layer.self_attn_layer_norm(x_BLD)
            new_key, new_value = _project_keys_values(layer.self_attn, normed_BLD)
            self_pair = torch.cat([key, new_key], dim=2), torch.cat([value, new_value], dim=2)
            x_BLD = x_BLD + _attend(layer.self_attn, normed_BLD, *self_pair, mask_LN)
            x_BLD = _cross_attention_and_feed_forward(layer, x_BLD, cross_key, cross_value)
            cache += self_pair
        return (decoder.layer_norm(x_BLD), *cache)


def _cross_attention_and_feed_forward(layer: WhisperDecoderLayer, x_BLD: Tensor, key: Tensor, value: Tensor) -> Tensor:
    x_BLD = x_BLD + _attend(layer.encoder_attn, layer.encoder_attn_layer_norm(x_BLD), key, value)
    return x_BLD + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x_BLD))))


def _project_keys_values(attention: WhisperAttention, x_BND: Tensor) -> tuple[Tensor, Tensor]:
    return _split_heads(attention, attention.k_proj(x_BND)), _split_heads(attention, attention.v_proj(x_BND))


def _attend(
    attention: WhisperAttention,
    x_BLD: Tensor,
    key_BHNK: Tensor,
    value_BHNK: Tensor,
    mask_LN: Tensor | None = None,
) -> Tensor:
    # Queries are scaled before the product, as Hugging Face and openai/whisper do: the order matters in float16.
    query_BHLK = _split_heads(attention, attention.q_proj(x_BLD) * attention.scaling)
    scores_BHLN = query_BHLK @ key_BHNK.transpose(2, 3)
    if mask_LN is not None:
        scores_BHLN = scores_BHLN + mask_LN
    context_BLHK = (scores_BHLN.softmax(-1) @ value_BHNK).transpose(1, 2)
    return attention.out_proj(context_BLHK.flatten(2))


def _split_heads(attention: WhisperAttention, x_BND: Tensor) -> Tensor:
    """Reshape [B, N, D] to [B, H, N, K]."""
    return x_BND.view(x_BND.shape[0], -1, attention.num_heads, attention.head_dim).transpose(1, 2)


def _causal_mask(length: int, past_length: int) -> Tensor:
    """Return a mask [L, P + L] that lets token i attend to positions 0 to P + i."""
    query_L1 = torch.arange(length)[:, None] + past_length
    key_1N = torch.arange(past_length + length)[None]
    return (key_1N > query_L1).float() * MASKED_SCORE


def require_tied_head(model: WhisperForConditionalGeneration) -> None:
    """Raise ValueError unless the output head has the weight of the token embedding."""
    # Every exported file stores the vocabulary matrix once; whisper.cpp drops proj_out as well.
    head, embedding = model.proj_out.weight, model.model.decoder.embed_tokens.weight
    if head is not embedding and not torch.equal(head, embedding):
        raise ValueError(
            "model.proj_out: expected the weight of decoder.embed_tokens, found a different one; tie the weights first"
        )
