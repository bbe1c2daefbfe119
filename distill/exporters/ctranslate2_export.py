"""Whisper to folders that faster-whisper loads: weights by CTranslate2's own loader, the rest made to fit a student.

    folder/ctranslate2-{fp32,int8}/    model.bin config.json vocabulary.json tokenizer.json preprocessor_config.json

CTranslate2's `TransformersConverter` reads a checkpoint again for every precision and trusts it in the rest; here the
model in memory is taken, and what a student may lack is filled in:

- alignment heads of layers that were cut; the last half of the layers where none is left, as the converter does;
- names for embeddings the tokenizer does not know, each at its own id (the converter closes gaps, which shifts ids).

Of faster-whisper 1.2 a student's designer should know:

- It pads every window to 30 s. CTranslate2 refuses input longer than its position table, and rightly: with the table
  continued to 30 s, the 7 s demo teacher got 0 of 19 texts right. `tests/interop/faster_whisper_clips.py` mends it.
- It pads the log-mel with 0, not with silence, which a model trained on Whisper's own padding may fill with words (3 of
  19 texts right in a 7 s window, 17 with silence). Silence appended to the audio itself prevents this.
- CTranslate2 calls a model multilingual from 51865 tokens on; one with fewer gets the English-only prompt (start,
  no-timestamps), whatever its files say. Hence 17 of 19 above; 19 with the prompt it was trained on.
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
"""int8: a scale a row for matrices and embedding; norms, biases and positions stay float32."""

FILES = ("tokenizer.json", "preprocessor_config.json")
"""Carried over as they are."""


def export_ctranslate2(student: ExportSource, folder: Path, precisions: Sequence[str]) -> None:
    """Write `folder/ctranslate2-{precision}/` for each precision.

    Raises ValueError for an unknown precision, UserError for a student that is not in CTranslate2's shape or whose
    checkpoint lacks a file.
    """
    if unknown := [precision for precision in precisions if precision not in QUANTIZATION]:
        raise ValueError(f"precisions: expected some of {', '.join(QUANTIZATION)}, found {', '.join(unknown)}")
    config = student.model.config
    for key, only in (("activation_function", "gelu"), ("scale_embedding", False)):
        if (found := getattr(config, key)) != only:
            raise UserError(f"export.ctranslate2: expected {key} {only}, found {found}; leave ctranslate2 out")
    for name in ("generation_config.json", *FILES):
        if not (student.source / name).is_file():
            raise UserError(f"{student.source / name}: expected the student's own, found none; faster-whisper reads it")
    for precision in precisions:
        target = folder / f"ctranslate2-{precision}"
        target.mkdir(parents=True, exist_ok=True)
        spec = _specification(student, folder)
        spec.validate()
        spec.optimize(quantization=QUANTIZATION[precision])
        spec.save(str(target))
        for name in FILES:
            shutil.copyfile(student.source / name, target / name)


@torch.no_grad()
def _specification(student: ExportSource, folder: Path) -> Any:
    from ctranslate2.converters.transformers import WhisperLoader

    # A copy, as quantisation scales the float32 weights in place: the next precision would start from integers.
    model = copy.deepcopy(expand_pairs(student.model, "ctranslate2"))
    spec = WhisperLoader().get_model_spec(model)
    # The export's own, where it was written: its heads were chosen for this student.
    laid_out = (folder / "generation_config.json").is_file()
    generation = json.loads(((folder if laid_out else student.source) / "generation_config.json").read_text())
    tokenizer = load_tokenizer(student.source)
    spec.register_vocabulary(token_names(tokenizer, model.config.vocab_size))
    spec.config.suppress_ids = generation.get("suppress_tokens") or []
    spec.config.suppress_ids_begin = generation.get("begin_suppress_tokens") or []
    spec.config.lang_ids = sorted((generation.get("lang_to_id") or {}).values())
    spec.config.alignment_heads = default_alignment_heads(generation, model)
    return spec


def token_names(tokenizer: Tokenizer, size: int) -> list[str]:
    """One distinct name an id: the tokenizer's, or the timestamp that Whisper has there.

    Whisper's older tokenizers do not list their timestamps, which follow `<|notimestamps|>` in steps of 20 ms.
    """
    names = {number: name for name, number in tokenizer.get_vocab().items()}
    start = (tokenizer.token_to_id("<|notimestamps|>") or 0) + 1
    return [names.get(number, f"<|{0.02 * (number - start):.2f}|>") for number in range(size)]


def default_alignment_heads(generation: dict[str, Any], model: "WhisperForConditionalGeneration") -> list[list[int]]:
    """Layer and head of the cross-attention that word timestamps are read from."""
    layers, heads = model.config.decoder_layers, model.config.decoder_attention_heads
    known = [[layer, head] for layer, head in generation.get("alignment_heads") or [] if layer < layers]
    return known or [list(pair) for pair in product(range(layers // 2, layers), range(heads))]
