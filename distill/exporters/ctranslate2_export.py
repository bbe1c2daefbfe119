"""Export Whisper to folders that faster-whisper loads, with CTranslate2's converter for the weights.

    folder/ctranslate2-{fp32,int8}/    model.bin config.json vocabulary.json tokenizer.json preprocessor_config.json

CTranslate2's `TransformersConverter` reads the checkpoint again for every precision and assumes that it is complete.
This module takes the model in memory and adds what a student may lack:

- Alignment heads in layers that were cut are dropped. If none is left, all heads of the last half of the layers are
  used, as the converter does.
- Embeddings that the tokenizer has no token for get a name at their own id. The converter closes such gaps, which
  shifts the ids after them.

Anyone who designs a student for faster-whisper 1.2 should know:

- It pads every window to 30 s. CTranslate2 refuses input longer than its position table, and rightly: with the table
  extended to 30 s, the 7 s demo teacher got 0 of 19 texts right. `tests/interop/faster_whisper_clips.py` has a fix.
- It pads the log-mel with 0, not with silence. A model trained on Whisper's own padding may fill such padding with
  words: 3 of 19 texts were right in a 7 s window, and 17 with silence. Silence appended to the audio itself prevents
  this.
- CTranslate2 regards a model as multilingual if it has 51865 tokens or more. One with fewer gets the English-only
  prompt (start, no-timestamps) regardless of its files. This explains the 17 of 19 above; with the prompt that the
  model was trained on, all 19 are right.
"""

import copy
import json
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer

from distill.compression.low_rank import expand_pairs
from distill.exporters.export_source import ExportSource
from eval.runtimes.model_format import load_tokenizer
from recipes.core.errors import UserError

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration


QUANTIZATION = {"fp32": "float32", "int8": "int8"}
"""CTranslate2's name of each precision. int8 has one scale per row of the matrices and the embedding; norms, biases and
positions stay in float32."""

FILES = ("tokenizer.json", "preprocessor_config.json")
"""Files of the checkpoint that are copied as they are."""


def export_ctranslate2(student: ExportSource, folder: Path, precisions: Sequence[str]) -> None:
    """Write `folder/ctranslate2-{precision}/` for each precision.

    Raises ValueError for an unknown precision, UserError if CTranslate2 does not support the student's architecture or
    the checkpoint lacks a file.
    """
    if unknown := [precision for precision in precisions if precision not in QUANTIZATION]:
        raise ValueError(f"precisions: expected some of {', '.join(QUANTIZATION)}, found {', '.join(unknown)}")
    config = student.model.config
    for key, supported in (("activation_function", "gelu"), ("scale_embedding", False)):
        if (value := getattr(config, key)) != supported:
            raise UserError(f"export.ctranslate2: expected {key} {supported}, found {value}; leave ctranslate2 out")
    for name in ("generation_config.json", *FILES):
        if not (student.source / name).is_file():
            raise UserError(
                f"{student.source / name}: expected this file, which faster-whisper reads, found none; add it"
            )
    for precision in precisions:
        target = folder / f"ctranslate2-{precision}"
        target.mkdir(parents=True, exist_ok=True)
        spec = _model_spec(student, folder)
        spec.validate()
        spec.optimize(quantization=QUANTIZATION[precision])
        spec.save(str(target))
        for name in FILES:
            shutil.copyfile(student.source / name, target / name)


@torch.no_grad()
def _model_spec(student: ExportSource, folder: Path) -> Any:
    """Return CTranslate2's specification of the model: its weights in float32, vocabulary and decoding settings."""
    from ctranslate2.converters.transformers import WhisperLoader

    # Copy the model: quantization scales the float32 weights in place, so the next precision would start from integers.
    model = copy.deepcopy(expand_pairs(student.model, "ctranslate2"))
    spec = WhisperLoader().get_model_spec(model)
    # Prefer the generation config of the export's folder: its alignment heads may have been chosen for this student.
    has_own = (folder / "generation_config.json").is_file()
    generation = json.loads(((folder if has_own else student.source) / "generation_config.json").read_text())
    tokenizer = load_tokenizer(student.source)
    spec.register_vocabulary(token_names(tokenizer, model.config.vocab_size))
    spec.config.suppress_ids = generation.get("suppress_tokens") or []
    spec.config.suppress_ids_begin = generation.get("begin_suppress_tokens") or []
    spec.config.lang_ids = sorted((generation.get("lang_to_id") or {}).values())
    spec.config.alignment_heads = default_alignment_heads(generation, model)
    return spec


def token_names(tokenizer: Tokenizer, size: int) -> list[str]:
    """Return a distinct name for each id below `size`: the tokenizer's, or that of Whisper's timestamp with this id.

    Whisper's older tokenizers do not list their timestamps, which follow `<|notimestamps|>` in steps of 20 ms.
    """
    names = {id_: name for name, id_ in tokenizer.get_vocab().items()}
    first = (tokenizer.token_to_id("<|notimestamps|>") or 0) + 1
    return [names.get(id_, f"<|{0.02 * (id_ - first):.2f}|>") for id_ in range(size)]


def default_alignment_heads(generation: dict[str, Any], model: "WhisperForConditionalGeneration") -> list[list[int]]:
    """Return layer and head of each cross-attention head that word timestamps are read from.

    These are the heads of the generation config that exist in the model, or else all heads of the last half of the
    layers.
    """
    layers, heads = model.config.decoder_layers, model.config.decoder_attention_heads
    existing = [[layer, head] for layer, head in generation.get("alignment_heads") or [] if layer < layers]
    return existing or [list(pair) for pair in product(range(layers // 2, layers), range(heads))]
