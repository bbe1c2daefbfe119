"""PyTorch runtime: the teacher's baseline, and the reference every export is compared with.

B batch, F mel bins, T mel frames, S encoder positions, L tokens, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import EncoderDecoderCache, WhisperForConditionalGeneration


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> WhisperForConditionalGeneration:
    """A Whisper checkpoint from a local folder, in evaluation mode; safetensors only."""
    transformers.logging.disable_progress_bar()
    model = WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    return model.eval()


@dataclass
class TorchState:
    """Encoder states [B, S, D] and the decoder's cache."""

    encoder_BSD: torch.Tensor
    cache: EncoderDecoderCache | None = None


class TorchRuntime:
    """A model in memory behind the `Runtime` face."""

    def __init__(self, model: WhisperForConditionalGeneration, device: torch.device | str = "cpu"):
        self.model = model.to(device)

    @torch.inference_mode()
    def encode(self, mel_BFT: np.ndarray) -> TorchState:
        """Log-mel [B, F, T] to encoder states."""
        mel = torch.from_numpy(np.ascontiguousarray(mel_BFT)).to(self.model.device, self.model.dtype)
        return TorchState(self.model.model.encoder(mel).last_hidden_state)

    @torch.inference_mode()
    def step(self, tokens_BL: np.ndarray, state: TorchState) -> tuple[np.ndarray, TorchState]:
        """Logits [B, V] after the last of these tokens."""
        decoded = self.model.model.decoder(
            input_ids=torch.from_numpy(tokens_BL).to(self.model.device),
            encoder_hidden_states=state.encoder_BSD,
            past_key_values=state.cache,
            use_cache=True,
        )
        logits_BV = self.model.proj_out(decoded.last_hidden_state[:, -1])
        return logits_BV.float().cpu().numpy(), TorchState(state.encoder_BSD, decoded.past_key_values)
