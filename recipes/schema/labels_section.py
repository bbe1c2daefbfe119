"""The `labels` section: pseudo-labels for the train and validation audio."""

from typing import Literal

from pydantic import Field

from recipes.schema.section import Section


class LabelsSection(Section):
    """Transcripts of the train and validation audio by the teacher, and the token distributions to learn from."""

    text: Literal["teacher", "reference", "normalized_reference"] = "teacher"
    """Source of the label text: the teacher, the transcripts of the corpus as they are, or those transcripts in lower
    case without punctuation."""
    source: str | None = None
    """Use a finished label set instead of running the teacher: a folder of label shards, or a Hub id."""
    batch_size: int | Literal["auto"] = 32
    """Clips per batch. `auto` derives it from the free memory. A run that is killed loses only the current batch."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Floating-point type of the teacher. `auto` is fp32 on a CPU, and bf16 or fp16 on a GPU."""
    quantize: Literal[8, 4] | None = None
    """Load the linear layers of the teacher in 8 or 4 bits with bitsandbytes. Null loads them in `precision`."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention implementation of transformers. `flash_attention_2` needs a GPU and its own package."""
    kv_cache: Literal["dynamic", "static"] = "dynamic"
    """Key-value cache. `dynamic` grows with the text and drops finished clips from the batch; `static` has fixed
    shapes, which compiled kernels need."""
    language: Literal["teacher", "column", "detect"] = "teacher"
    """Language of the prompt: `teacher.language`, the language column of the corpus (if the utterance has one), or the
    language that the teacher detects."""
    timestamps: bool = False
    """Decode each clip a second time with timestamps, so that training can use either form. Both passes share one
    encoder pass."""
    top_k: int = Field(default=0, ge=0)
    """Number of teacher logits stored for each label token. 0 stores none; the vocabulary size stores the whole
    distribution."""
    temperature: float = Field(default=2.0, gt=0)
    """Softmax temperature at which the probability outside `top_k` is summed. Must equal the temperature of
    training."""
    fallback: list[float] = [0.2, 0.4, 0.6, 0.8, 1.0]
    """Sampling temperatures that are tried in turn while a label is degenerate. If none helps, the greedy label is
    kept."""
    fallback_compression_ratio: float = Field(default=2.4, gt=0)
    """A label with a higher zlib compression ratio repeats itself and is degenerate. The default is Whisper's own
    limit."""
    fallback_logprob: float = -1.0
    """A label with a lower mean natural-log probability is a guess and is degenerate. The default is Whisper's own
    limit."""
    shard_rows: int = Field(default=4096, gt=0)
    """Number of rows in each finished Parquet shard."""
