"""ONNX Runtime over the two files of `distill.exporters.onnx_export`; needs numpy and onnxruntime alone.

B batch, F mel bins, T mel frames, S encoder positions, L tokens, P past tokens, D width, H heads, K width of
a head, V vocabulary.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from eval.runtimes.model_format import ModelSizes
from recipes.core.errors import UserError

SUFFIX = {"fp32": "", "fp16": "_fp16", "int8": "_quantized"}
PRECISIONS = tuple(SUFFIX)


def files(folder: Path, precision: str) -> list[Path]:
    """Encoder and merged decoder, with the weights beside them where they are large."""
    stems = (f"encoder_model{SUFFIX[precision]}.onnx", f"decoder_model_merged{SUFFIX[precision]}.onnx")
    return [file for stem in stems for file in sorted((folder / "onnx").glob(f"{stem}*"))]


def load(folder: Path, precision: str, threads: int) -> "OnnxRuntime":
    """See `OnnxRuntime`."""
    return OnnxRuntime(folder, precision, threads)


@dataclass(frozen=True)
class OnnxState:
    """One batch in decoding; a step makes a new one and leaves this as it is."""

    encoder_BSD: np.ndarray
    caches: dict[str, np.ndarray] | None = None
    """[B, H, P or S, K] by input name; none before the prompt."""


class OnnxRuntime:
    """A model folder behind the `Runtime` face."""

    def __init__(self, folder: Path, precision: str, threads: int, profile: Path | None = None):
        """Load `folder/onnx/{encoder_model,decoder_model_merged}*.onnx`; `threads` work inside one operator.

        A `profile` folder takes traces of every operator. Raises UserError for a file that is missing or broken.
        """
        self._encoder = _session(folder / "onnx" / f"encoder_model{SUFFIX[precision]}.onnx", threads, profile)
        self._decoder = _session(folder / "onnx" / f"decoder_model_merged{SUFFIX[precision]}.onnx", threads, profile)
        self._outputs = [output.name for output in self._decoder.get_outputs()]
        _, bins, frames = self._encoder.get_inputs()[0].shape
        self.sizes = ModelSizes(bins, frames, self._decoder.get_outputs()[0].shape[-1])
        self._caches = {
            value.name: value.shape for value in self._decoder.get_inputs() if value.name.startswith("past_key_values.")
        }

    def encode(self, mel_BFT: np.ndarray) -> OnnxState:
        """Log-mel float32 [B, F, T] to encoder states."""
        (encoder_BSD,) = self._encoder.run(None, {"input_features": np.ascontiguousarray(mel_BFT, np.float32)})
        return OnnxState(encoder_BSD)

    def step(self, tokens_BL: np.ndarray, state: OnnxState) -> tuple[np.ndarray, OnnxState]:
        """Int64 tokens after those already given: float32 logits [B, V] of the last, and the new state."""
        # Plain arrays are lent to ONNX Runtime, not copied: its own values and IOBinding were no faster
        # (whisper-tiny's shape: 9.5, 9.4 and 9.8 ms in fp32, 2.5, 2.5 and 2.7 ms in int8; alnum: 0.39, 0.47
        # and 0.45 ms in fp32).
        cached = state.caches is not None
        caches = state.caches or {
            name: np.zeros((len(tokens_BL), heads, 0, width), np.float32)
            for name, (_, heads, _, width) in self._caches.items()
        }
        feeds = {
            "input_ids": np.ascontiguousarray(tokens_BL, np.int64),
            "encoder_hidden_states": state.encoder_BSD,
            "use_cache_branch": np.array([cached]),
            **caches,
        }
        logits_BLV, *presents = self._decoder.run(self._outputs, feeds)
        new = dict(zip(self._caches, presents, strict=True))
        if cached:  # the cached branch answers the cross-attention with placeholders
            new |= {name: value for name, value in caches.items() if ".encoder." in name}
        return logits_BLV[:, -1], OnnxState(state.encoder_BSD, new)

    def end_profiling(self) -> dict[str, Path]:
        """The traces (JSON) of encoder and decoder."""
        return {"encoder": Path(self._encoder.end_profiling()), "decoder": Path(self._decoder.end_profiling())}


def _session(path: Path, threads: int, profile: Path | None) -> Any:
    import onnxruntime

    if not path.is_file():
        raise UserError(f"{path}: expected an exported ONNX file, found none; run the export stage with this precision")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Encoder and decoder have a pool of threads each, and the idle one's would spin on the cores that the other needs:
    # a clip of alnum's int8 student 41 ms on two threads of two cores, so 28, and 12 with `ONE_BLAS_THREAD` besides.
    # One pool for both gains 5 to 20 % more, but all other sessions of the process must then use it or will not load.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # A plan of all activations would be one block a session, which no other session can use.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.use_env_allocators", "1")
    _share_arena()
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile / path.stem)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its InvalidProtobuf, Fail, NoSuchFile, ... share no other base
        found = str(error).partition("\n")[0]
        raise UserError(f"{path}: expected a readable ONNX file, found {found}; run the export stage again") from error


@cache
def _share_arena() -> None:
    """One arena for those sessions of this process that ask for it.

    With one each, what the encoder worked in lies idle while the decoder takes more: whisper-base's shape in int8 peaks
    at 267 MB, with one arena and no plan of activations at 217, tokenizer and audio not counted, no slower.
    """
    import onnxruntime

    kind, use = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    # Where somebody else in this process has registered one, that is the one shared.
    with suppress(Exception):
        onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", kind, 0, use), None)
