"""A Whisper decoder with a cache in which every row of the batch can be at a different position of its text.

Each token's keys and values are stored in the slot of the token's position, instead of being appended. One pass may
therefore read row 0 from its fifth token and row 1 from its ninth. A token that turns out to be wrong need not be
removed: earlier tokens do not attend to its slot, and the token that replaces it overwrites the slot before attending.

B batch, S encoder positions, D width, H heads, L tokens, C cache slots, V vocabulary.
"""

from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, WhisperForConditionalGeneration
from transformers.cache_utils import Cache, DynamicLayer


class SlotDecoder:
    """A decoder with its cache for one batch.

    Args:
        model: The Whisper model.
        encoder_BSD: Encoder output.
        slots: Length of the cache: the largest number of positions that will be read, the prompt included.
    """

    def __init__(self, model: WhisperForConditionalGeneration, encoder_BSD: torch.Tensor, slots: int):
        self.model, self.encoder_BSD, self.slots = model, encoder_BSD, slots
        self._layers = [_SlotLayer(slots) for _ in range(model.config.decoder_layers)]
        self._cache = EncoderDecoderCache(Cache(layers=self._layers), DynamicCache())

    def __call__(self, tokens_BL: torch.Tensor, start_B: torch.Tensor, last: int | None = None) -> torch.Tensor:
        """Read tokens [B, L] and return the float32 logits [B, L, V] after each of them.

        Args:
            tokens_BL: The tokens to read.
            start_B: Position of the first one in each row's text.
            last: Compute only the logits after the last `last` tokens; None for all.
        """
        slots_BL = start_B[:, None] + torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        used = int(slots_BL.max()) + 1
        later_BLC = torch.arange(used, device=tokens_BL.device) > slots_BL[..., None]
        mask_BLC = torch.zeros(later_BLC.shape, dtype=self.model.dtype, device=tokens_BL.device)
        mask_BLC.masked_fill_(later_BLC, torch.finfo(self.model.dtype).min)
        for layer in self._layers:
            layer.slots_BL, layer.used = slots_BL, used
        decoded = self.model.model.decoder(
            input_ids=tokens_BL,
            attention_mask=mask_BLC[:, None],
            # Only drafted tokens that no text has room for are beyond the last position.
            position_ids=slots_BL.clamp(max=self.model.config.max_target_positions - 1),
            encoder_hidden_states=self.encoder_BSD,
            past_key_values=self._cache,
            use_cache=True,
        )
        # The output projection is most of the work of a small decoder, and at batch 1 it is far cheaper for one token
        # than for two.
        return self.model.proj_out(decoded.last_hidden_state[:, -(last or 0) :]).float()


class _SlotLayer(DynamicLayer):
    """Keys and values [B, H, C, D] of one layer, each token's in the slot of its position."""

    def __init__(self, slots: int):
        super().__init__()
        self._slots = slots
        # Set before each pass: the slots [B, L] to write, and how many slots any row has used.
        self.slots_BL, self.used = torch.empty(0), 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values [B, H, L, D] to `slots_BL`; return those of all slots that any row has used."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            shape = (*key_states.shape[:2], self._slots, key_states.shape[-1])
            self.keys, self.values = key_states.new_zeros(shape), value_states.new_zeros(shape)
        rows_B1 = torch.arange(len(key_states), device=key_states.device)[:, None]
        self.keys[rows_B1, :, self.slots_BL] = key_states.transpose(1, 2)
        self.values[rows_B1, :, self.slots_BL] = value_states.transpose(1, 2)
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]
