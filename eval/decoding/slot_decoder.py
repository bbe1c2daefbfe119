"""A decoder whose rows may each be at another place of their text.

Keys and values lie at the slot of their token's position and not one after the other, so one pass may read row 0 from
its fifth token and row 1 from its ninth. A token that was read in vain needs no removal: none that stands before it
sees its slot, and the one that comes in its place writes there before it looks.

B batch, S encoder positions, D width, H heads, L tokens, C cache slots, V vocabulary.
"""

from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, WhisperForConditionalGeneration
from transformers.cache_utils import Cache, DynamicLayer


class SlotDecoder:
    """A decoder with its cache, in which each row is at a place of its own."""

    def __init__(self, model: WhisperForConditionalGeneration, encoder_BSD: torch.Tensor, slots: int):
        self.model, self.encoder_BSD, self.slots = model, encoder_BSD, slots
        self._layers = [_SlotLayer(slots) for _ in range(model.config.decoder_layers)]
        self._cache = EncoderDecoderCache(Cache(layers=self._layers), DynamicCache())

    def __call__(self, tokens_BL: torch.Tensor, start_B: torch.Tensor, last: int | None = None) -> torch.Tensor:
        """Float32 logits [B, L, V] after each of these tokens, or the `last` of them; each row has a start."""
        slots_BL = start_B[:, None] + torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        seen = int(slots_BL.max()) + 1
        later_BLC = torch.arange(seen, device=tokens_BL.device) > slots_BL[..., None]
        mask_BLC = torch.zeros(later_BLC.shape, dtype=self.model.dtype, device=tokens_BL.device)
        mask_BLC.masked_fill_(later_BLC, torch.finfo(self.model.dtype).min)
        for layer in self._layers:
            layer.slots_BL, layer.seen = slots_BL, seen
        decoded = self.model.model.decoder(
            input_ids=tokens_BL,
            attention_mask=mask_BLC[:, None],
            # Beyond the last position stand only drafts that no text has room for.
            position_ids=slots_BL.clamp(max=self.model.config.max_target_positions - 1),
            encoder_hidden_states=self.encoder_BSD,
            past_key_values=self._cache,
            use_cache=True,
        )
        # The head is most of a small decoder, and for one token at batch 1 a far cheaper product than for two.
        return self.model.proj_out(decoded.last_hidden_state[:, -(last or 0) :]).float()


class _SlotLayer(DynamicLayer):
    """Keys and values [B, H, C, D] of one layer; a token's lie at the slot of its position in its row."""

    def __init__(self, slots: int):
        super().__init__()
        self._slots, self.seen = slots, 0
        self.slots_BL = torch.empty(0)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [B, H, L, D] at the slots of this pass; all that any row has reached."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            shape = (*key_states.shape[:2], self._slots, key_states.shape[-1])
            self.keys, self.values = key_states.new_zeros(shape), value_states.new_zeros(shape)
        rows_B1 = torch.arange(len(key_states), device=key_states.device)[:, None]
        self.keys[rows_B1, :, self.slots_BL] = key_states.transpose(1, 2)
        self.values[rows_B1, :, self.slots_BL] = value_states.transpose(1, 2)
        return self.keys[:, :, : self.seen], self.values[:, :, : self.seen]
