"""OpenVINO over the two models of `distill.exporters.openvino_export`; needs numpy and openvino alone.

B batch, F mel bins, T mel frames, S encoder positions, L tokens, D width, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.runtimes.model_format import ModelSizes
from recipes.core.errors import UserError, one_line

PRECISIONS = ("fp32", "fp16", "int8")


def files(folder: Path, precision: str) -> list[Path]:
    """Graph and weights of encoder and decoder."""
    parts = [f"openvino_{part}_model.{kind}" for part in ("encoder", "decoder") for kind in ("xml", "bin")]
    paths = [folder / f"openvino-{precision}" / name for name in parts]
    return [path for path in paths if path.is_file()]


def load(folder: Path, precision: str, threads: int) -> "OpenVinoRuntime":
    """See `OpenVinoRuntime`."""
    return OpenVinoRuntime(folder, precision, threads)


@dataclass(frozen=True, eq=False)
class OpenVinoState:
    """One batch in decoding. The cache itself lives in the decoder and follows the latest state alone."""

    encoder_BSD: np.ndarray
    started: bool = False
    """Whether the decoder has seen the prompt."""


class OpenVinoRuntime:
    """A model folder behind the `Runtime` face, with one restriction: states are used in order.

    The decoder keeps one cache, so `step` takes the state that `encode` gave, which empties the cache, or the one that
    the last `step` gave; any other raises ValueError. Two clips are decoded one after the other, or as a batch.
    """

    def __init__(self, folder: Path, precision: str, threads: int):
        """Load `folder/openvino-{precision}/openvino_{encoder,decoder}_model.xml` on the CPU.

        Raises UserError for a file that is missing or broken.
        """
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        exact = {**settings, "INFERENCE_PRECISION_HINT": "f32"}
        folder = folder / f"openvino-{precision}"
        # fp16 and int8 let the encoder compute in bfloat16 where the CPU has it (64 dB on alnum). The decoder never
        # does: with OpenVINO 2026.4 on AVX512_BF16, rows of a batch after the first came out wrong, even as NaN.
        self._encoder = _request(
            core, folder / "openvino_encoder_model.xml", exact if precision == "fp32" else settings
        )
        self._decoder = _request(core, folder / "openvino_decoder_model.xml", exact)
        self._latest: OpenVinoState | None = None
        _, bins, frames = self._encoder.get_compiled_model().input(0).partial_shape
        logits = self._decoder.get_compiled_model().output("logits").partial_shape
        self.sizes = ModelSizes(bins.get_length(), frames.get_length(), logits[2].get_length())

    def encode(self, mel_BFT: np.ndarray) -> OpenVinoState:
        """Log-mel float32 [B, F, T] to encoder states."""
        self._encoder.infer([np.ascontiguousarray(mel_BFT, np.float32)])
        return OpenVinoState(self._encoder.get_output_tensor().data.copy())

    def step(self, tokens_BL: np.ndarray, state: OpenVinoState) -> tuple[np.ndarray, OpenVinoState]:
        """Int64 tokens after those already given: float32 logits [B, V] of the last, and the new state."""
        if state.started and state is not self._latest:
            raise ValueError("state: expected the one of the last step, found an older one; OpenVINO keeps one cache")
        if not state.started:
            self._decoder.reset_state()
        feeds = {
            "input_ids": np.ascontiguousarray(tokens_BL, np.int64),
            "encoder_hidden_states": state.encoder_BSD,
            "beam_idx": np.arange(len(tokens_BL), dtype=np.int32),
        }
        self._decoder.infer(feeds, share_inputs=True)
        self._latest = OpenVinoState(state.encoder_BSD, started=True)
        return self._decoder.get_output_tensor().data[:, -1].copy(), self._latest


def _request(core: Any, path: Path, settings: dict[str, Any]) -> Any:
    for part in (path, path.with_suffix(".bin")):
        if not part.is_file():
            raise UserError(
                f"{part}: expected a part of an OpenVINO model, found none; run the export stage with this precision"
            )
    try:
        return core.compile_model(path, "CPU", settings).create_infer_request()
    except RuntimeError as error:
        found = one_line(error)[:200]
        raise UserError(
            f"{path}: expected a readable OpenVINO model, found {found}; run the export stage again"
        ) from error
