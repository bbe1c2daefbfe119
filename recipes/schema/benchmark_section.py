"""The `benchmark` section: how latency and memory are measured."""

from typing import Annotated

from pydantic import Field

from recipes.schema.section import Section


class BenchmarkSection(Section):
    """Measurement of latency and memory. Each variant runs in a fresh process."""

    threads: int = Field(default=2, gt=0)
    """Number of threads of a measuring process, and of CPU cores that it is pinned to."""
    clips: int = Field(default=25, gt=0)
    """Number of test clips, transcribed one at a time."""
    runs: int = Field(default=100, gt=0)
    """Minimum number of timed transcriptions. The clips are repeated until it is reached."""
    warmup: int = Field(default=20, ge=0)
    """Number of transcriptions before timing starts."""
    turns: int = Field(default=50, gt=0)
    """Number of clips that a variant and the baseline transcribe alternately to measure the speed-up. Alternating
    cancels changes in the machine's speed."""
    tokens: int | None = Field(default=None, gt=0)
    """Decode exactly this many tokens per clip, for models with random weights, which never end a text. Null stops at
    the end-of-text token."""
    repeats: int = Field(default=2, ge=0)
    """Number of extra measurements of a variant whose result is so close to a limit of its budget that noise could
    change the verdict."""
    clients: list[Annotated[int, Field(gt=0)]] = []
    """Numbers of concurrent clients of one process to measure, such as [1, 2, 4, 8]. Empty skips this measurement."""
