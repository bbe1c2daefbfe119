"""LiteRT on the two graphs of `distill.exporters.tflite_export`; needs only numpy and ai_edge_litert.

The graphs take one clip and one token at a time. Their cache has a fixed length: see `TfliteRuntime.max_tokens`.

B batch, F mel bins, T mel frames, S encoder positions, L tokens, D width, H heads, K width of a head, N cache length,
V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.runtimes.model_format import ModelSizes
from recipes.core.errors import UserError, one_line

SUFFIX = {"fp32": "", "fp16": "_fp16", "int8": "_int8"}
PRECISIONS = tuple(SUFFIX)
MASKED = np.float32(-100)
"""Added to the attention scores of empty cache slots."""

Tensors = dict[str, np.ndarray]


def files(folder: Path, precision: str) -> list[Path]:
    """Return the existing files of encoder and decoder."""
    return [path for path in _paths(folder, precision) if path.is_file()]


def load(folder: Path, precision: str, threads: int) -> "TfliteRuntime":
    """Load `folder/tflite/{encoder,decoder}*.tflite`. Raises UserError if a file is missing or broken."""
    return TfliteRuntime(*_paths(folder, precision), threads)


def _paths(folder: Path, precision: str) -> tuple[Path, Path]:
    encoder, decoder = (folder / "tflite" / f"{part}{SUFFIX[precision]}.tflite" for part in ("encoder", "decoder"))
    return encoder, decoder


@dataclass(frozen=True, eq=False)
class ClipState:
    """Decoding state of one clip."""

    cross: Tensors
    """cross_key_i [H, 1, K, S] and cross_value_i [H, 1, S, K]; the same object in all states of a clip."""
    own: Tensors
    """self_key_i [H, 1, K, N - 1] and self_value_i [H, 1, N - 1, K], newest last."""
    length: int = 0
    """Number of tokens fed so far."""


@dataclass(frozen=True, eq=False)
class TfliteState:
    """Decoding state of one batch. A step returns a new state and does not change its argument."""

    encoder_BSD: np.ndarray
    clips: tuple[ClipState, ...]


class TfliteRuntime:
    """An encoder and a decoder graph as a `Runtime`."""

    def __init__(self, encoder: Path, decoder: Path, threads: int):
        """Load both files; each operator uses `threads` threads. Raises UserError if one is missing or broken."""
        self._encoder, self._decoder = _Graph(encoder, threads), _Graph(decoder, threads)
        shapes = self._decoder.shapes
        self.max_tokens = shapes["attention_mask"][-1]
        """Longest text in tokens, the prompt included: the length N of the cache."""
        _, bins, frames = self._encoder.shapes["input_features"]
        self.sizes = ModelSizes(bins, frames, self._decoder.output_shapes["logits"][-1])
        self._empty = {name: np.zeros(shapes[name], np.float32) for name in shapes if name.startswith("self_")}
        self._copied_cross: Tensors | None = None

    def encode(self, mel_BFT: np.ndarray) -> TfliteState:
        """See `Runtime.encode`."""
        states, clips = [], []
        for mel_FT in mel_BFT:
            outputs = self._encoder.run({"input_features": np.ascontiguousarray(mel_FT[None], np.float32)})
            states.append(outputs.pop("encoder_states"))
            clips.append(ClipState(outputs, self._empty))
        return TfliteState(np.concatenate(states), tuple(clips))

    def step(self, tokens_BL: np.ndarray, state: TfliteState) -> tuple[np.ndarray, TfliteState]:
        """See `Runtime.step`. Raises UserError if the text would be longer than the cache."""
        length = state.clips[0].length + tokens_BL.shape[1]
        if length > self.max_tokens:
            raise UserError(
                f"{self._decoder.path}: expected at most {self.max_tokens} tokens, prompt included, the length of its "
                f"cache, found {length}; set max_tokens lower"
            )
        logits, clips = [], []
        for tokens_L, clip in zip(tokens_BL, state.clips, strict=True):
            for token in tokens_L:
                logits_1V, clip = self._step_token(int(token), clip)
            logits.append(logits_1V)
            clips.append(clip)
        return np.concatenate(logits), TfliteState(state.encoder_BSD, tuple(clips))

    def _step_token(self, token: int, clip: ClipState) -> tuple[np.ndarray, ClipState]:
        mask_111N = np.full((1, 1, 1, self.max_tokens), MASKED)
        mask_111N[..., self.max_tokens - clip.length - 1 :] = 0
        inputs = {
            "input_ids": np.array([[token]], np.int32),
            "position": np.array([clip.length], np.int32),
            "attention_mask": mask_111N,
            **clip.own,
        }
        # The interpreter keeps its inputs, so the cross-attention's keys and values (18 MB for whisper-tiny) are copied
        # in only when another clip was decoded before.
        if self._copied_cross is not clip.cross:
            inputs |= clip.cross
            self._copied_cross = clip.cross
        outputs = self._decoder.run(inputs)
        own = {name: outputs[f"new_{name}"] for name in clip.own}
        return outputs["logits"], ClipState(clip.cross, own, clip.length + 1)


class _Graph:
    """One LiteRT file, whose inputs and outputs are addressed by name."""

    def __init__(self, path: Path, threads: int):
        from ai_edge_litert.interpreter import Interpreter

        if not path.is_file():
            raise UserError(f"{path}: expected a LiteRT file, found none; run the export stage with this precision")
        self.path = path
        try:
            self._interpreter = Interpreter(str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
            runner = self._interpreter.get_signature_runner()
        except (ValueError, RuntimeError) as error:
            found = one_line(error)[:200]
            raise UserError(
                f"{path}: expected a readable LiteRT file, found {found}; run the export stage again"
            ) from error
        # The signature runner itself is not used for calls: it would need every input again each time.
        self._inputs, self._outputs = (
            {name: detail["index"] for name, detail in details.items()}
            for details in (runner.get_input_details(), runner.get_output_details())
        )
        self.shapes, self.output_shapes = (
            {name: tuple(int(size) for size in detail["shape"]) for name, detail in details.items()}
            for details in (runner.get_input_details(), runner.get_output_details())
        )

    def run(self, inputs: Tensors) -> dict[str, Any]:
        """Return copies of the outputs by name. An input that is missing keeps the value of the last call."""
        for name, value in inputs.items():
            self._interpreter.set_tensor(self._inputs[name], value)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}
