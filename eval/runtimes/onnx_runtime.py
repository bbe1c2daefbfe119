"""ONNX Runtime on the two graphs of `distill.exporters.onnx_export`; needs only numpy and onnxruntime.

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
    """Return the existing files of encoder and merged decoder, with any external weights that large models have."""
    stems = (f"encoder_model{SUFFIX[precision]}.onnx", f"decoder_model_merged{SUFFIX[precision]}.onnx")
    return [file for stem in stems for file in sorted((folder / "onnx").glob(f"{stem}*"))]


def load(folder: Path, precision: str, threads: int) -> "OnnxRuntime":
    """Load `folder/onnx/`. Raises UserError if a file is missing or broken."""
    return OnnxRuntime(folder, precision, threads)


@dataclass(frozen=True)
class OnnxState:
    """Decoding state of one batch. A step returns a new state and does not change its argument."""

    encoder_BSD: np.ndarray
    caches: dict[str, np.ndarray] | None = None
    """Key-value caches [B, H, P or S, K] by the name of the graph's input; None before the prompt."""


class OnnxRuntime:
    """An encoder and a decoder graph as a `Runtime`."""

    def __init__(self, folder: Path, precision: str, threads: int, profile: Path | None = None):
        """Load `folder/onnx/{encoder_model,decoder_model_merged}*.onnx`; each operator uses `threads` threads.

        If the folder `profile` is given, traces of every operator are written to it (see `end_profiling`). Raises
        UserError if a file is missing or broken.
        """
        self._encoder = _session(folder / "onnx" / f"encoder_model{SUFFIX[precision]}.onnx", threads, profile)
        self._decoder = _session(folder / "onnx" / f"decoder_model_merged{SUFFIX[precision]}.onnx", threads, profile)
        self._outputs = [output.name for output in self._decoder.get_outputs()]
        _, bins, frames = self._encoder.get_inputs()[0].shape
        self.sizes = ModelSizes(bins, frames, self._decoder.get_outputs()[0].shape[-1])
        self._cache_shapes = {
            value.name: value.shape for value in self._decoder.get_inputs() if value.name.startswith("past_key_values.")
        }

    def encode(self, mel_BFT: np.ndarray) -> OnnxState:
        """See `Runtime.encode`."""
        (encoder_BSD,) = self._encoder.run(None, {"input_features": np.ascontiguousarray(mel_BFT, np.float32)})
        return OnnxState(encoder_BSD)

    def step(self, tokens_BL: np.ndarray, state: OnnxState) -> tuple[np.ndarray, OnnxState]:
        """See `Runtime.step`."""
        # Numpy arrays are passed without a copy. OrtValues and IOBinding were no faster: a step with numpy, OrtValues
        # and IOBinding took 9.5, 9.4 and 9.8 ms (whisper-tiny's shape, fp32), 2.5, 2.5 and 2.7 ms (whisper-tiny's
        # shape, int8), and 0.39, 0.47 and 0.45 ms (alnum, fp32).
        cached = state.caches is not None
        caches = state.caches or {
            name: np.zeros((len(tokens_BL), heads, 0, width), np.float32)
            for name, (_, heads, _, width) in self._cache_shapes.items()
        }
        feeds = {
            "input_ids": np.ascontiguousarray(tokens_BL, np.int64),
            "encoder_hidden_states": state.encoder_BSD,
            "use_cache_branch": np.array([cached]),
            **caches,
        }
        logits_BLV, *presents = self._decoder.run(self._outputs, feeds)
        new = dict(zip(self._cache_shapes, presents, strict=True))
        if cached:  # the branch with a cache returns placeholders for the cross-attention's caches, which do not change
            new |= {name: value for name, value in caches.items() if ".encoder." in name}
        return logits_BLV[:, -1], OnnxState(state.encoder_BSD, new)

    def end_profiling(self) -> dict[str, Path]:
        """Stop profiling; return the trace files (JSON) of `encoder` and `decoder`."""
        return {"encoder": Path(self._encoder.end_profiling()), "decoder": Path(self._decoder.end_profiling())}


def _session(path: Path, threads: int, profile: Path | None) -> Any:
    import onnxruntime

    if not path.is_file():
        raise UserError(f"{path}: expected an exported ONNX file, found none; run the export stage with this precision")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Encoder and decoder each have a thread pool, and without this option the threads of the idle pool spin on the
    # cores that the other one needs: a clip of alnum's int8 student took 41 ms on two threads of two cores, takes 28 ms
    # with this option, and 12 ms with `recipes.core.machine.ONE_BLAS_THREAD` as well. One pool shared by both gains
    # another 5 to 20 %, but then every other session of the process must use it too, or it does not load.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # A memory pattern would reserve one block of all activations for each session, which no other session could use.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.use_env_allocators", "1")
    _share_arena()
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile / path.stem)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # InvalidProtobuf, Fail, NoSuchFile, ... have no other common base class
        found = str(error).partition("\n")[0]
        raise UserError(f"{path}: expected a readable ONNX file, found {found}; run the export stage again") from error


@cache
def _share_arena() -> None:
    """Register one memory arena for all sessions of this process that ask for it.

    With an arena per session, the encoder's working memory is idle while the decoder allocates more. whisper-base's
    shape in int8 then peaks at 267 MB; with one arena and no memory pattern it peaks at 217 MB, at the same speed
    (tokenizer and audio not counted).
    """
    import onnxruntime

    kind, use = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    # Registration fails if other code in this process has registered an arena already; then that one is shared.
    with suppress(Exception):
        onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", kind, 0, use), None)
