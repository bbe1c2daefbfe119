"""The PyTorch runtime: baseline of every benchmark, and the reference that every export is compared with.

B batch, F mel bins, T mel frames, S encoder positions, D width, L tokens, V vocabulary.
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
    """Return the existing safetensors files of the checkpoint."""
    return sorted(folder.glob("model*.safetensors"))


def load(folder: Path, _precision: str, threads: int) -> "TorchRuntime":
    """Load a checkpoint on the CPU in float32. Raises UserError if a file is missing or broken."""
    torch.set_num_threads(threads)
    return TorchRuntime(load_model(folder))


def model_class(folder: Path) -> type[WhisperForConditionalGeneration]:
    """Return the class to load a model folder with: Whisper, or this project's class if the shape was changed.

    A modelling file in the folder is never executed.
    """
    config = json.loads((folder / "config.json").read_text())
    changed_shape = any(config.get(key) for key in KEYS)
    return SottovoceForConditionalGeneration if changed_shape else WhisperForConditionalGeneration


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> WhisperForConditionalGeneration:
    """Load a Whisper checkpoint from the safetensors of a local folder, in evaluation mode.

    Raises UserError if a file is missing or broken.
    """
    transformers.logging.disable_progress_bar()
    try:
        model = model_class(folder).from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        found = one_line(error)[:200]
        if "ignore_mismatched_sizes" in found:  # transformers prints a table and then advises this option
            found = "weights of other shapes than config.json says"
        raise UserError(
            f"{folder}: expected a Whisper checkpoint of config.json and safetensors, found {found}"
        ) from error
    return model.eval()


def load_teacher(
    folder: Path, device: torch.device, precision: str = "auto", quantize: int | None = None, attention: str = "sdpa"
) -> WhisperForConditionalGeneration:
    """Load a teacher for inference only, without gradients, as small and fast as its device allows.

    Args:
        folder: A local model folder.
        device: Where the model is placed.
        precision: `fp32`, `bf16`, `fp16` or `auto`: fp32 on a CPU, bf16 on a GPU that supports it, else fp16.
        quantize: 8 or 4 to let bitsandbytes keep the linear layers in LLM.int8() or NF4; None for no quantization.
        attention: transformers' `attn_implementation`.

    Raises UserError if the device or an installed package lacks a kernel for these options.
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
        options = f"labels.quantize {quantize}, " if quantize else ""
        options += f"labels.attention {attention}"
        raise UserError(
            f"teacher {folder}: expected {options} to work on {device}, found {str(error).splitlines()[0]}; "
            "change these options"
        ) from error
    return (model if config else model.to(device)).eval().requires_grad_(False)


@dataclass
class TorchState:
    """Decoding state of one batch. A step extends the cache in place: continue from the latest state only."""

    encoder_BSD: torch.Tensor
    cache: EncoderDecoderCache | None = None
    """The decoder's key-value cache; None before the prompt."""


class TorchRuntime:
    """A loaded transformers model as a `Runtime`."""

    def __init__(self, model: WhisperForConditionalGeneration, device: torch.device | str = "cpu"):
        self.model = model.to(device)
        config = model.config
        self.sizes = ModelSizes(config.num_mel_bins, 2 * config.max_source_positions, config.vocab_size)

    @torch.inference_mode()
    def encode(self, mel_BFT: np.ndarray) -> TorchState:
        """See `Runtime.encode`."""
        mel = torch.from_numpy(np.ascontiguousarray(mel_BFT)).to(self.model.device, self.model.dtype)
        return TorchState(self.model.model.encoder(mel).last_hidden_state)

    @torch.inference_mode()
    def step(self, tokens_BL: np.ndarray, state: TorchState) -> tuple[np.ndarray, TorchState]:
        """See `Runtime.step`."""
        decoded = self.model.model.decoder(
            input_ids=torch.from_numpy(tokens_BL).to(self.model.device),
            encoder_hidden_states=state.encoder_BSD,
            past_key_values=state.cache,
            use_cache=True,
        )
        logits_BV = self.model.proj_out(decoded.last_hidden_state[:, -1])
        return logits_BV.float().cpu().numpy(), TorchState(state.encoder_BSD, decoded.past_key_values)
