"""What a budget is compared with, and the verdicts: the fields of `budget` and `other_budgets` in report.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from eval.latency.latency_rows import LatencyRow

LimitKey = Literal["memory_cap", "clip_p95_ms", "rtf", "peak_rss_mb", "size_mb", "wer_increase"]
"""The fields of `recipes.schema.device_budget.BudgetLimits`, and `memory_cap` for `DeviceBudget.memory_mb`."""


@dataclass(frozen=True)
class ArtefactFigures:
    """The figures of one artefact that a budget limits, measured or predicted."""

    name: str
    clip_p95_ms: float | None
    """95th percentile of the time to transcribe a clip, in milliseconds; None if it was not measured."""
    rtf: float | None
    """Real-time factor; None if it was not measured."""
    peak_rss_mb: float
    """Peak resident memory, in MB."""
    size_mb: float
    """Size of the weight files, in MB."""
    ranges: Mapping[str, tuple[float, float]]
    """Lowest and highest value that a repeated measurement is expected to give, by figure; a figure that is left out
    is expected to come out the same."""
    repeated: bool = False
    """Whether `ranges` spans several whole measurements, so that the drift of the baseline need not be added."""
    fits: bool = True
    """False if the process is ended at the memory cap of the device."""
    reason: str | None = None
    """Why the artefact does not fit, for the reader."""

    @classmethod
    def of(cls, row: LatencyRow) -> "ArtefactFigures":
        """Return the figures of a measured system."""
        return cls(
            row.name, row.clip_p95_ms, row.rtf, row.peak_rss_mb, row.size_mb, row.noise or {},
            bool(row.measurements), row.fits, row.reason,
        )  # fmt: skip


@dataclass(frozen=True)
class LimitVerdict:
    """One figure of an artefact compared with one limit of a budget."""

    limit: str
    """Name of the limit for the reader."""
    unit: str
    """`ms`, `MB`, `points` (percentage points) or empty."""
    allowed: float
    """The limit."""
    measured: float | None
    """The figure, multiplied by the published speed ratio where there is one; None if it was not measured."""
    low: float | None
    """Lower end of the range in which a repeated measurement is expected."""
    high: float | None
    """Upper end of that range."""
    kept: bool
    """Whether `measured` is at most `allowed`; False if it was not measured."""
    safe: bool
    """Whether `allowed` is outside the range from `low` to `high`, so that a repeated measurement gives the same
    verdict."""
    note: str
    """Remark for the reader; empty if there is nothing to say."""
    key: LimitKey | None = None
    """None in reports of older versions."""


@dataclass(frozen=True)
class ArtefactVerdict:
    """One artefact compared with all limits of a budget."""

    artefact: str
    """Name of the system, such as `onnx-int8`."""
    kept: bool
    """Whether every limit is kept."""
    safe: bool
    """Whether a repeated measurement is expected to give the same verdict."""
    rows: Sequence[LimitVerdict]
    """One row for each limit of the budget; before them one for the memory cap if the artefact did not fit."""
    fits: bool = True
    """False if the process was ended at the memory cap of the device."""


@dataclass(frozen=True)
class Emulation:
    """How the measuring machine stands in for a device with another processor."""

    cpu: str
    """Processor of the measuring machine."""
    device_cpu: str
    """Processor of the device."""
    threads: int
    """Threads that were used."""
    threads_of_device: int
    """Threads that may be used on the device."""
    memory_mb: float | None
    """Memory cap in MB; None for none."""
    factor: float | None
    """Time on the device over time on the measuring machine; None if no ratio is published for this machine."""
    text: str
    """The same in words."""


@dataclass(frozen=True)
class DeviceVerdict:
    """All artefacts compared with the budget of one device."""

    device: str
    """Name of the budget."""
    description: str
    """The kind of device and use that the budget is meant for."""
    source: str
    """Reasons for the limits."""
    required: bool
    """Whether a missed budget ends the run with exit status 3."""
    kept: bool
    """Whether at least one artefact keeps every limit."""
    cheapest: str | None
    """The artefact that keeps every limit and is smallest on disk, then fastest; None if none keeps them."""
    emulation: Emulation | None
    """None if the measuring machine is the device."""
    verdicts: Sequence[ArtefactVerdict]
