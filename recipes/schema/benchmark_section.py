"""TODO: recipes.schema.benchmark_section."""

from typing import Annotated

from pydantic import Field

from recipes.schema.section import Section


class BenchmarkSection(Section):
    """Latency and memory, one fresh process a variant."""

    threads: int = Field(default=2, gt=0)
    """Cores a process is pinned to, and threads it uses."""
    clips: int = Field(default=25, gt=0)
    """Test clips transcribed one by one."""
    runs: int = Field(default=100, gt=0)
    """Timed transcriptions at least; the clips are repeated as needed."""
    warmup: int = Field(default=20, ge=0)
    """Untimed transcriptions first."""
    turns: int = Field(default=50, gt=0)
    """Clips that a variant and the baseline transcribe in turn, for how many times faster it is."""
    tokens: int | None = Field(default=None, gt=0)
    """Decode exactly this many tokens a clip, for random weights; null stops at the end of text."""
    repeats: int = Field(default=2, ge=0)
    """More measurements of a variant that is too near a limit of its budget for this machine's noise."""
    clients: list[Annotated[int, Field(gt=0)]] = []
    """Numbers of clients that ask one process at the same time, such as [1, 2, 4, 8]; empty leaves this out."""
