"""PyTorch runtime: the teacher's baseline, and the reference every export is compared with.

B batch, F mel bins, T mel frames, S encoder positions, L tokens, V vocabulary.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig, EncoderDecoderCache, WhisperForConditionalGeneration

from eval.runtimes.model_format import ModelSizes
from eval.runtimes.modeling_sottovoce import KEYS, SottovoceForConditionalGeneration
from recipes.core.errors import UserError, one_line

PRECISIONS = ("fp32",)


def files(folder: Path, _precision: str) -> list[Path]:
    """The safetensors of a checkpoint."""
    return sorted(folder.glob("model*.safetensors"))


def load(folder: Path, _precision: str, threads: int) -> "TorchRuntime":
    """A checkpoint in memory."""
    torch.set_num_threads(threads)
    return TorchRuntime(load_model(folder))


def model_class(folder: Path) -> type[WhisperForConditionalGeneration]:
    """Whisper itself, or for a folder of a changed shape ours, whatever modelling file lies there: it is never run."""
    config = json.loads((folder / "config.json").read_text())
    changed = any(config.get(key) for key in KEYS)
    return SottovoceForConditionalGeneration if changed else WhisperForConditionalGeneration


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> WhisperForConditionalGeneration:
    """A Whisper checkpoint from a local folder, in evaluation mode; safetensors only.

    Raises UserError for files that are missing or broken.
    """
    transformers.logging.disable_progress_bar()
    try:
        model = model_class(folder).from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        found = one_line(error)[:200]
        if "ignore_mismatched_sizes" in found:  # transformers' advice, below a table of its own
            found = "weights of other shapes than config.json says"
        raise UserError(
            f"{folder}: expected a Whisper checkpoint of config.json and safetensors, found {found}"
        ) from error
    return model.eval()


def load_teacher(
    folder: Path, device: torch.device, precision: str = "auto", quantize: int | None = None, attention: str = "sdpa"
) -> WhisperForConditionalGeneration:
    """A teacher that is only listened to, as small and fast as its device allows.

    Precision `auto` is fp32 on a CPU, bf16 where a GPU has it, else fp16. With `quantize` 8 or 4 its linear layers are
    held by bitsandbytes in LLM.int8() or NF4. Raises UserError where the device or the package lacks a kernel.
    """
    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision == "auto":
        gpu = device.type == "cuda"
        precision = ("bf16" if torch.cuda.is_bf16_supported() else "fp16") if gpu else "fp32"
    transformers.logging.disable_progress_bar()
    config = None
    if quantize is not None:
        config = BitsAndBytesConfig(
            load_in_8bit=quantize == 8, load_in_4bit=quantize == 4, bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=types[precision],
        )  # fmt: skip
    try:
        model = model_class(folder).from_pretrained(
            folder, dtype=types[precision], local_files_only=True, use_safetensors=True, quantization_config=config,
            attn_implementation=attention, device_map={"": device} if config else None,
        )  # fmt: skip
    except (ImportError, RuntimeError, ValueError) as error:
        wanted = f"labels.quantize {quantize}, " if quantize else ""
        raise UserError(
            f"teacher {folder}: {wanted}labels.attention {attention} cannot be had on {device}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return (model if config else model.to(device)).eval().requires_grad_(False)


@dataclass
class TorchState:
    """Encoder states [B, S, D] and the decoder's cache."""

    encoder_BSD: torch.Tensor
    cache: EncoderDecoderCache | None = None


class TorchRuntime:
    """A model in memory behind the `Runtime` face."""

    def __init__(self, model: WhisperForConditionalGeneration, device: torch.device | str = "cpu"):
        self.model = model.to(device)
        config = model.config
        self.sizes = ModelSizes(config.num_mel_bins, 2 * config.max_source_positions, config.vocab_size)

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
