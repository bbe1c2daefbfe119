"""The fields of `report/report.json`: the results of all stages of a run in one file.

The dataclasses have the keys of the JSON file as their fields. Accuracy, latency and verdicts are described in
`eval.scoring.accuracy_report`, `eval.latency.latency_rows` and `eval.latency.verdict_rows`, the sections of the other
stages in `eval.reporting.report_sections`. A section is None if the recipe leaves its stage out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.latency.latency_rows import LatencyReport
from eval.latency.verdict_rows import DeviceVerdict
from eval.reporting.report_sections import (
    CompressionSummary,
    CorpusSummary,
    LabelsSummary,
    ParitySummary,
    StudentShape,
    StudentSummary,
    TrainingSummary,
)
from eval.scoring.accuracy_report import AccuracyReport
from recipes.core.typed_json import read_json


@dataclass(frozen=True)
class Machine:
    """The machine that wrote the report; see `recipes.core.machine.describe_machine`."""

    cpu: str
    cores: int
    """Cores that this process may use."""
    memory_gb: float
    """Memory in GB (10^9 bytes)."""
    platform: str
    python: str
    """Python version."""
    versions: Mapping[str, str]
    """Versions of the packages that results depend on."""


@dataclass(frozen=True)
class OtherRun:
    """Another finished run that the report shows next to this one."""

    name: str
    student: StudentShape
    latency: LatencyReport


@dataclass(frozen=True)
class ReportData:
    """The contents of `report/report.json`."""

    name: str
    """Name of the run."""
    date: str
    """`YYYY-MM-DD`."""
    command: str
    """The `sottovoce run` command that makes the whole run."""
    commit: str | None
    machine: Machine
    budget: DeviceVerdict | None = None
    """The first budget of the recipe, the only one that may be required."""
    other_budgets: Sequence[DeviceVerdict] = ()
    accuracy: AccuracyReport | None = None
    latency: LatencyReport | None = None
    beside: Sequence[OtherRun] = ()
    parity: ParitySummary | None = None
    training: TrainingSummary | None = None
    compression: CompressionSummary | None = None
    healing: TrainingSummary | None = None
    labels: LabelsSummary | None = None
    corpus: CorpusSummary | None = None
    student: StudentSummary | None = None

    @property
    def budgets(self) -> list[DeviceVerdict]:
        """All verdicts, the first budget of the recipe first."""
        return [self.budget, *self.other_budgets] if self.budget else []


def read_report(file: Path) -> ReportData:
    """Read a `report.json`. Raises UserError if its fields are not those of `ReportData`."""
    return read_json(ReportData, file)
