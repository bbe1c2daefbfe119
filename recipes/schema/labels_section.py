"""TODO: recipes.schema.labels_section."""

from typing import Literal

from pydantic import Field

from recipes.schema.section import Section


class LabelsSection(Section):
    """The teacher's transcripts of train and validation audio."""

    text: Literal["teacher", "reference", "normalized_reference"] = "teacher"
    """Who wrote them: the teacher, or the sources' own transcripts, as they stand or lower-case without punctuation."""
    source: str | None = None
    """Take a finished label set instead of running the teacher: a folder of label shards, or a Hub id."""
    batch_size: int | Literal["auto"] = 32
    """Clips a batch; `auto` finds it from free memory. A killed run loses at most the batch in flight."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """The teacher's arithmetic; `auto` is fp32 on a CPU, bf16 or fp16 on a GPU."""
    quantize: Literal[8, 4] | None = None
    """Load the teacher's linear layers in 8 or 4 bits through bitsandbytes."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention kernels of transformers; flash_attention_2 needs its own package and a GPU."""
    kv_cache: Literal["dynamic", "static"] = "dynamic"
    """`dynamic` grows and drops finished clips from the batch; `static` has fixed shapes, for compiled kernels."""
    language: Literal["teacher", "column", "detect"] = "teacher"
    """Language of the prompt: teacher.language, the utterance's own where there is one, or the teacher's guess."""
    timestamps: bool = False
    """Decode a second time with timestamps (one encoder pass serves both), so that training may draw either."""
    top_k: int = Field(default=0, ge=0)
    """Teacher logits kept at each label token; 0 keeps none, the vocabulary's size keeps the whole distribution."""
    temperature: float = Field(default=2.0, gt=0)
    """Softmax temperature at which the tail beyond top_k is summed; the temperature of training."""
    fallback: list[float] = [0.2, 0.4, 0.6, 0.8, 1.0]
    """Sampling temperatures tried in turn while a label is degenerate; the greedy one stays if none mends it."""
    fallback_compression_ratio: float = Field(default=2.4, gt=0)
    """A label that zlib shrinks more than this repeats itself (Whisper's own limit)."""
    fallback_logprob: float = -1.0
    """A label with a lower mean natural-log probability is a guess (Whisper's own limit)."""
    shard_rows: int = Field(default=4096, gt=0)
    """Rows of one finished Parquet shard."""
