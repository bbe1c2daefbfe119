"""Export Whisper to compressed-tensors checkpoints, which vLLM and plain transformers load; GPTQ by llm-compressor.

    folder/compressed-{w8a8,w4a16}/    model.safetensors, config.json with quantization_config, the JSONs of `folder`

    w4a16    weights in 4 bits, symmetric, one scale per group of inputs; activations not quantized
    w8a8     weights in 8 bits, one scale per output; activations in 8 bits, one scale per position, computed on the fly

GPTQ (Frantar et al. 2022, arXiv 2210.17323) rounds the columns of a layer one after the other and adjusts the later
ones to compensate, on calibration audio, for the error of the earlier ones. The layers are quantized in order, each on
the outputs of the quantized layers before it. Convolutions, positions, norms, the embedding and the head that is tied
to it stay in 16 bits.

B batch, F mel bins, T mel frames, S encoder positions, L tokens, D width.
"""

import contextlib
import copy
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.utils.data import DataLoader
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import Seq2SeqModelOutput

from distill.compression.low_rank import expand_pairs
from distill.data.calibration import CalibrationAudio
from distill.exporters.export_source import ExportSource
from eval.decoding.transcriber import Transcriber
from eval.runtimes.torch_runtime import TorchRuntime
from recipes.core.atomic_files import write_json
from recipes.core.progress import track

CLIPS = 128
"""Largest number of calibration clips."""
GROUPS = (128, 64, 32)
"""Numbers of inputs that may share a scale: those that vLLM's 4-bit kernels (Marlin) support.

Larger groups make the file smaller, and the WER of the alnum teacher on AN4 test does not tell them apart: groups of
32, 64 and 192 inputs give 31.1, 31.7 and 30.5 % in 3.13, 3.00 and 2.91 MB. The original has 31.4 % and 9.04 MB in 16
bits, and the interval of every difference to it contains zero.
"""
HEAD = "proj_out"


def export_compressed_tensors(student: ExportSource, folder: Path, precisions: Sequence[str]) -> None:
    """Write `folder/compressed-{precision}/` for each precision, calibrated on up to 128 clips.

    Raises ValueError for an unknown precision, UserError if there is no calibration audio.
    """
    if unknown := [precision for precision in precisions if precision not in SCHEMES]:
        raise ValueError(f"precisions: expected some of {', '.join(SCHEMES)}, found {', '.join(unknown)}")
    import llmcompressor  # noqa: F401  # import it first: it is the package that may be missing

    batches = calibration_batches(student)
    for precision in precisions:
        write_quantized(student, folder, folder / f"compressed-{precision}", SCHEMES[precision](student.model), batches)


def _w8a8(_model: WhisperForConditionalGeneration) -> dict[str, Any]:
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    return {"weights": weights, "input_activations": activations}


def w4a16(model: WhisperForConditionalGeneration, group: int | None = None) -> dict[str, Any]:
    """Return the 4-bit scheme with groups of `group` inputs, by default of the model's own `group_size`."""
    size = group or group_size(model)
    strategy = {"strategy": "group", "group_size": size} if size else {"strategy": "channel"}
    return {"weights": {"num_bits": 4, "type": "int", "symmetric": True} | strategy}


SCHEMES: dict[str, Callable[[WhisperForConditionalGeneration], dict[str, Any]]] = {"w8a8": _w8a8, "w4a16": w4a16}
"""Builds the quantization scheme of a precision for a model, in the format of compressed-tensors."""


def group_size(model: nn.Module) -> int | None:
    """Return the largest of GROUPS that divides the inputs of every linear layer; None if none does.

    None stands for one scale per output.
    """
    widths = {layer.in_features for layer in model.modules() if isinstance(layer, nn.Linear)}
    return next((size for size in GROUPS if all(width % size == 0 for width in widths)), None)


def calibration_batches(student: ExportSource) -> list[dict[str, Tensor]]:
    """Return the log-mel [1, F, T] and the decoder's inputs [1, L] of clips evenly spaced over the training audio.

    The decoder's inputs are the prompt and the student's own greedy text: what its decoder will read in use, and
    available for audio without a transcript too.
    """
    clips = CalibrationAudio.spread(student.calibration, student.model.config, CLIPS, "export.compressed_tensors:")
    transcriber = Transcriber(TorchRuntime(student.model), student.source, student.language, student.task)
    batches = []
    for mel_1FT in track(clips, "calibration texts", unit="clip"):
        (transcript,) = transcriber.decode(mel_1FT)
        ids_1L = torch.tensor([[*transcriber.format.prompt, *transcript.tokens[:-1]]])
        batches.append({"input_features": torch.from_numpy(mel_1FT), "decoder_input_ids": ids_1L})
    return batches


def write_quantized(
    student: ExportSource, folder: Path, target: Path, scheme: dict[str, Any], batches: list[dict[str, Tensor]]
) -> None:
    """Quantize a copy of the student, and write it to `target` with the JSON files of `folder`.

    Args:
        student: The model and its checkpoint.
        folder: Model folder with the JSON files (`folder_layout.write_layout`).
        target: Folder to write.
        scheme: Quantization scheme in the format of compressed-tensors (`SCHEMES`).
        batches: Calibration data (`calibration_batches`).
    """
    model = copy.deepcopy(expand_pairs(student.model, "compressed-tensors"))
    # llm-compressor reads config.json from this folder; the student's own may list low-rank layers, which are expanded.
    model.config._name_or_path = str(folder)
    with _quiet_llmcompressor():
        from llmcompressor import oneshot
        from llmcompressor.modifiers.gptq import GPTQModifier

        recipe = GPTQModifier(ignore=[HEAD], config_groups={"group_0": {"targets": ["Linear"], **scheme}})
        model.model.forward = MethodType(forward, model.model)
        # A list does everything that DataLoader needs of a data set; only its type is not declared so.
        loader: DataLoader[dict[str, Tensor]] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        oneshot(model=model, dataset=loader, recipe=recipe, pipeline="sequential")
        model.half().save_pretrained(target)
    # config.json holds the same, without the YAML tags that construct Python objects.
    (target / "recipe.yaml").unlink()
    for file in (*folder.glob("*.json"), *folder.glob("*.txt")):
        if file.name != "config.json":
            shutil.copyfile(file, target / file.name)
    config = json.loads((target / "config.json").read_text())
    # transformers 5.17 expands compressed weights in a hook on the forward of the whole model. Whisper's generate calls
    # the encoder first, before that hook ("'Linear' object has no attribute 'weight'"). With this key the weights are
    # expanded when they are loaded.
    config["quantization_config"]["dequantize"] = True
    write_json(target / "config.json", config)


@contextlib.contextmanager
def _quiet_llmcompressor() -> Iterator[None]:
    """Show only the warnings of llm-compressor's log, on stderr: stdout is for the result of the command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # llm-compressor sets it too, but with a warning
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        # No module is offloaded: all are in memory.
        warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
        import llmcompressor  # noqa: F401  # configures its log, which is then changed
        from loguru import logger

        logger.remove()
        # GPTQ warns of figures for every layer, get_main_device at every step that there is no GPU.
        hidden = ("GPTQ", "get_main_device")
        logger.add(sys.stderr, level="WARNING", filter=lambda record: record["function"] not in hidden)
        yield


def forward(self: Any, input_features: Tensor, decoder_input_ids: Tensor, **_: Any) -> Seq2SeqModelOutput:
    """WhisperModel.forward without branches, used during calibration.

    llm-compressor traces the source of a forward method and treats everything behind a branch that it cannot decide as
    one block. WhisperModel.forward has two such branches, on given encoder outputs and on dropped layers, so the whole
    encoder would be one block, in which GPTQ finds no layers. The name must be `forward`, because llm-compressor
    recompiles the source and looks the function up by that name.
    """
    encoder = self.encoder
    hidden_BDS = gelu(encoder.conv2(gelu(encoder.conv1(input_features))))
    hidden_BSD = hidden_BDS.permute(0, 2, 1) + encoder.embed_positions.weight
    for layer in encoder.layers:
        hidden_BSD = layer(hidden_BSD, None)
    states_BSD = encoder.layer_norm(hidden_BSD)
    decoded = self.decoder(input_ids=decoder_input_ids, encoder_hidden_states=states_BSD, use_cache=False)
    return Seq2SeqModelOutput(last_hidden_state=decoded.last_hidden_state, encoder_last_hidden_state=states_BSD)
