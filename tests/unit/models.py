"""Small models for tests, the outputs of torch for them, and distances of other outputs from these.

B batch, F mel bins, T mel frames, S encoder positions, D width, L tokens, V vocabulary, N steps.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import EncoderDecoderCache, WhisperConfig, WhisperForConditionalGeneration

from distill.exporters.parity import forced_decoding
from distill.models.cutting import cut_layers
from eval.runtimes.interface import Runtime
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from tests.conftest import TEACHER

PROMPT = [3, 5, 7]


def demo_student(encoder_layers: int = 4) -> WhisperForConditionalGeneration:
    """Return the demo teacher with two decoder layers."""
    return cut_layers(load_model(TEACHER), list(range(encoder_layers)), [0, 3])


def random_whisper(seed: int = 0, **shape: Any) -> WhisperForConditionalGeneration:
    """Return a model with random weights, 128 mel bins and more decoder than encoder layers.

    `shape` overrides values of the WhisperConfig.
    """
    torch.manual_seed(seed)
    config = {
        "vocab_size": 300, "num_mel_bins": 128, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "max_source_positions": 35, "max_target_positions": 24, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "decoder_start_token_id": 3, "suppress_tokens": None, "begin_suppress_tokens": None,
        "init_std": 0.15,
    }  # fmt: skip
    model = WhisperForConditionalGeneration(WhisperConfig(**config | shape)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # they are initialised to zero, with which a missing bias would go unnoticed
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def random_mel(model: WhisperForConditionalGeneration, batch: int = 1) -> np.ndarray:
    """Return noise [B, F, T] with the shape of log-mels of the model's window."""
    config = model.config
    shape = (batch, config.num_mel_bins, 2 * config.max_source_positions)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


class Noise:
    """Replaces a `CompressionContext`: its clips are noise, the same in every pass."""

    audio: ClassVar[list[list[str]]] = []
    texts: ClassVar[list[str | None]] = ["one two three", "four, five!"]
    processors = TEACHER

    def __init__(self, model: WhisperForConditionalGeneration, clips: int = 2):
        self.mels = [mel_FT[None] for mel_FT in random_mel(model, clips)]

    def calibration_audio(self, model: WhisperForConditionalGeneration) -> list[np.ndarray]:
        """Return the log-mels of the clips, cut to the model's window."""
        frames = 2 * model.config.max_source_positions
        return [mel_1FT[..., :frames] for mel_1FT in self.mels]

    def decoder_inputs(self, model: WhisperForConditionalGeneration) -> list[list[int]]:
        """Return a few random tokens [L] for each clip."""
        draw = np.random.default_rng(2)
        return [draw.integers(0, model.config.vocab_size, 12).tolist() for _ in self.mels]


def token_steps(model: WhisperForConditionalGeneration, batch: int, lengths: Sequence[int]) -> list[np.ndarray]:
    """Return random tokens [B, L] for each step."""
    draw = np.random.default_rng(1)
    return [draw.integers(0, model.config.vocab_size, (batch, length)) for length in lengths]


@torch.no_grad()
def torch_steps(
    model: WhisperForConditionalGeneration, mel_BFT: np.ndarray, steps: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return transformers' encoder states [B, S, D] and the last token's logits [N, B, V] of each cached step."""
    encoder_BSD = model.model.encoder(torch.from_numpy(mel_BFT)).last_hidden_state
    cache: EncoderDecoderCache | None = None
    logits = []
    for tokens_BL in steps:
        decoded = model.model.decoder(
            input_ids=torch.from_numpy(tokens_BL), encoder_hidden_states=encoder_BSD, past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
        cache = decoded.past_key_values
        logits.append(model.proj_out(decoded.last_hidden_state[:, -1]).numpy())
    return encoder_BSD.numpy(), np.stack(logits)


def parity_db(model: WhisperForConditionalGeneration, runtime: Runtime, tokens: int) -> float:
    """Return the smaller of two PSNRs: of the encoder states, and of the logits along a random text."""
    text = np.random.default_rng(1).integers(0, model.config.vocab_size, tokens).tolist()
    mel_BFT = random_mel(model)
    expected_BSD, expected = forced_decoding(TorchRuntime(model), mel_BFT, PROMPT, text)
    found_BSD, found = forced_decoding(runtime, mel_BFT, PROMPT, text)
    return min(psnr(expected_BSD, found_BSD), psnr(np.stack(expected), np.stack(found)))


def psnr(expected: np.ndarray, found: np.ndarray) -> float:
    """Return 20 log10(largest expected value / root mean square error), in dB."""
    assert expected.shape == found.shape
    return float(20 * np.log10(np.abs(expected).max() / np.sqrt(np.mean((expected - found) ** 2))))
