"""OpenVINO on the two models of `distill.exporters.openvino_export`; needs only numpy and openvino.

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
    """Return the existing graph and weight files of encoder and decoder."""
    parts = [f"openvino_{part}_model.{kind}" for part in ("encoder", "decoder") for kind in ("xml", "bin")]
    paths = [folder / f"openvino-{precision}" / name for name in parts]
    return [path for path in paths if path.is_file()]


def load(folder: Path, precision: str, threads: int) -> "OpenVinoRuntime":
    """Load `folder/openvino-PRECISION/`. Raises UserError if a file is missing or broken."""
    return OpenVinoRuntime(folder, precision, threads)


@dataclass(frozen=True, eq=False)
class OpenVinoState:
    """Decoding state of one batch. The key-value cache is inside the decoder and belongs to the latest state only."""

    encoder_BSD: np.ndarray
    started: bool = False
    """Whether the decoder has read the prompt."""


class OpenVinoRuntime:
    """An encoder and a decoder model as a `Runtime`, with one restriction: states must be used in order.

    The decoder has a single cache. `step` therefore accepts either a state from `encode`, which empties the cache, or
    the state from the last `step`, and raises ValueError for any other. Decode two clips one after the other, or as one
    batch.
    """

    def __init__(self, folder: Path, precision: str, threads: int):
        """Load `folder/openvino-{precision}/openvino_{encoder,decoder}_model.xml` on the CPU.

        Raises UserError if a file is missing or broken.
        """
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        float32_settings = {**settings, "INFERENCE_PRECISION_HINT": "f32"}
        folder = folder / f"openvino-{precision}"
        # For fp16 and int8 the encoder may compute in bfloat16 if the CPU supports it (PSNR 64 dB on alnum). The
        # decoder must not: with OpenVINO 2026.4 on AVX512_BF16 every row of a batch but the first was wrong, even NaN.
        self._encoder = _compile(
            core, folder / "openvino_encoder_model.xml", float32_settings if precision == "fp32" else settings
        )
        self._decoder = _compile(core, folder / "openvino_decoder_model.xml", float32_settings)
        self._latest: OpenVinoState | None = None
        _, bins, frames = self._encoder.get_compiled_model().input(0).partial_shape
        logits = self._decoder.get_compiled_model().output("logits").partial_shape
        self.sizes = ModelSizes(bins.get_length(), frames.get_length(), logits[2].get_length())

    def encode(self, mel_BFT: np.ndarray) -> OpenVinoState:
        """See `Runtime.encode`."""
        self._encoder.infer([np.ascontiguousarray(mel_BFT, np.float32)])
        return OpenVinoState(self._encoder.get_output_tensor().data.copy())

    def step(self, tokens_BL: np.ndarray, state: OpenVinoState) -> tuple[np.ndarray, OpenVinoState]:
        """See `Runtime.step`. Raises ValueError for a state that is neither from `encode` nor from the last step."""
        if state.started and state is not self._latest:
            raise ValueError("state: expected the one of the last step, found an older one; OpenVINO has one cache")
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


def _compile(core: Any, path: Path, settings: dict[str, Any]) -> Any:
    for part in (path, path.with_suffix(".bin")):
        if not part.is_file():
            raise UserError(
                f"{part}: expected this file of an OpenVINO model, found none; run the export stage with this precision"
            )
    try:
        return core.compile_model(path, "CPU", settings).create_infer_request()
    except RuntimeError as error:
        found = one_line(error)[:200]
        raise UserError(
            f"{path}: expected a readable OpenVINO model, found {found}; run the export stage again"
        ) from error
