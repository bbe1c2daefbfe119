"""Whisper to compressed-tensors checkpoints, as vLLM and plain transformers load them: GPTQ by llm-compressor.

    folder/compressed-{w8a8,w4a16}/    model.safetensors, config.json with quantization_config, the JSONs of `folder`

    w4a16    weights in 4 bits, symmetric, one scale for each group of inputs; activations as they are
    w8a8     weights in 8 bits, one scale for each output; activations too, one scale for each position as it comes

GPTQ (Frantar et al. 2022, arXiv 2210.17323) rounds a layer's columns in turn and lets the later ones make up for what
the earlier ones lost on calibration audio; each layer sees its inputs as the layers before it, rounded already, give
them. Convolutions, positions, norms, the embedding and the head that is tied to it stay in 16 bits.

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
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import Seq2SeqModelOutput

from distill.compression.low_rank import expand_pairs
from distill.data.calibration import CalibrationAudio
from distill.exporters.export_source import ExportSource
from eval.decoding.transcriber import Transcriber
from eval.runtimes.torch_runtime import TorchRuntime
from recipes.core.atomic_files import write_json

CLIPS = 128
GROUPS = (128, 64, 32)
"""Inputs that may share a scale: what vLLM's kernels for 4 bits (Marlin) know.

The larger, the smaller the file, and the alnum teacher's WER on AN4 test does not tell them apart: 32, 64 and 192
inputs 31.1, 31.7 and 30.5 % in 3.13, 3.00 and 2.91 MB, every interval of the difference to the original (31.4 %, 9.04
MB in 16 bits) with zero in it.
"""
HEAD = "proj_out"


def export_compressed_tensors(student: ExportSource, folder: Path, precisions: Sequence[str]) -> None:
    """Write `folder/compressed-{precision}/` for each precision, from up to 128 clips of `student.calibration`.

    Raises ValueError for an unknown precision, UserError where there is no calibration audio.
    """
    if unknown := [precision for precision in precisions if precision not in SCHEMES]:
        raise ValueError(f"precisions: expected some of {', '.join(SCHEMES)}, found {', '.join(unknown)}")
    import llmcompressor  # noqa: F401  # first, as it is what may be missing

    batches = calibration_batches(student)
    for precision in precisions:
        write_quantized(student, folder, folder / f"compressed-{precision}", SCHEMES[precision](student.model), batches)


def _w8a8(_model: WhisperForConditionalGeneration) -> dict[str, Any]:
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    return {"weights": weights, "input_activations": activations}


def w4a16(model: WhisperForConditionalGeneration, group: int | None = None) -> dict[str, Any]:
    """Four bits in groups of so many inputs; by default of the model's own `group_size`."""
    size = group or group_size(model)
    strategy = {"strategy": "group", "group_size": size} if size else {"strategy": "channel"}
    return {"weights": {"num_bits": 4, "type": "int", "symmetric": True} | strategy}


SCHEMES: dict[str, Callable[[WhisperForConditionalGeneration], dict[str, Any]]] = {"w8a8": _w8a8, "w4a16": w4a16}


def group_size(model: nn.Module) -> int | None:
    """The largest of GROUPS that divides the inputs of every layer; None, a scale for each output, where none does."""
    widths = {layer.in_features for layer in model.modules() if isinstance(layer, nn.Linear)}
    return next((size for size in GROUPS if all(width % size == 0 for width in widths)), None)


def calibration_batches(student: ExportSource) -> list[dict[str, Tensor]]:
    """Of clips spread evenly over the training audio the log-mel [1, F, T] and the decoder's inputs [1, L].

    The latter are the student's own greedy text behind its prompt: what its decoder will see, in the way it writes, and
    to be had for audio without transcripts too.
    """
    clips = CalibrationAudio.spread(student.calibration, student.model.config, CLIPS, "export.compressed_tensors:")
    transcriber = Transcriber(TorchRuntime(student.model), student.source, student.language, student.task)
    batches = []
    for mel_1FT in tqdm(clips, "calibration texts", unit="clip"):
        (transcript,) = transcriber.decode(mel_1FT)
        ids_1L = torch.tensor([[*transcriber.format.prompt, *transcript.tokens[:-1]]])
        batches.append({"input_features": torch.from_numpy(mel_1FT), "decoder_input_ids": ids_1L})
    return batches


def write_quantized(
    student: ExportSource, folder: Path, target: Path, scheme: dict[str, Any], batches: list[dict[str, Tensor]]
) -> None:
    """Round a copy of the student by this scheme, in compressed-tensors' words; write it with the JSONs of `folder`."""
    model = copy.deepcopy(expand_pairs(student.model, "compressed-tensors"))
    # llm-compressor takes config.json from there: the student's own may name layers that `dense` has undone.
    model.config._name_or_path = str(folder)
    with _quiet():
        from llmcompressor import oneshot
        from llmcompressor.modifiers.gptq import GPTQModifier

        recipe = GPTQModifier(ignore=[HEAD], config_groups={"group_0": {"targets": ["Linear"], **scheme}})
        model.model.forward = MethodType(forward, model.model)
        # A list has all that is asked of a data set but the type.
        loader: DataLoader[dict[str, Tensor]] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        oneshot(model=model, dataset=loader, recipe=recipe, pipeline="sequential")
        model.half().save_pretrained(target)
    (target / "recipe.yaml").unlink()  # config.json says it too, without tags that make Python objects
    for file in (*folder.glob("*.json"), *folder.glob("*.txt")):
        if file.name != "config.json":
            shutil.copyfile(file, target / file.name)
    config = json.loads((target / "config.json").read_text())
    # transformers 5.17 expands weights in a hook on the whole model's forward; Whisper's generate calls the encoder
    # first, which then has none ("'Linear' object has no attribute 'weight'"). With this they are expanded at load.
    config["quantization_config"]["dequantize"] = True
    write_json(target / "config.json", config)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Of llm-compressor's log the warnings alone, and on stderr: stdout belongs to the stage's own result."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as it does itself, with a warning
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")  # all are in memory
        import llmcompressor  # noqa: F401  # puts up its log
        from loguru import logger

        logger.remove()
        # Figures of every layer, and at every step that there is no GPU.
        logger.add(sys.stderr, level="WARNING", filter=lambda said: said["function"] not in ("GPTQ", "get_main_device"))
        yield


def forward(self: Any, input_features: Tensor, decoder_input_ids: Tensor, **_: Any) -> Seq2SeqModelOutput:
    """WhisperModel.forward in a straight line, for the time of the calibration.

    llm-compressor reads the source of a forward and cannot see into a branch that it cannot decide. Behind two such, on
    encoder outputs given and on layers dropped, all of the encoder is one to it, and GPTQ finds no layer there.
    """
    encoder = self.encoder
    hidden_BDS = gelu(encoder.conv2(gelu(encoder.conv1(input_features))))
    hidden_BSD = hidden_BDS.permute(0, 2, 1) + encoder.embed_positions.weight
    for layer in encoder.layers:
        hidden_BSD = layer(hidden_BSD, None)
    states_BSD = encoder.layer_norm(hidden_BSD)
    decoded = self.decoder(input_ids=decoder_input_ids, encoder_hidden_states=states_BSD, use_cache=False)
    return Seq2SeqModelOutput(last_hidden_state=decoded.last_hidden_state, encoder_last_hidden_state=states_BSD)
