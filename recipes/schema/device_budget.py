"""Device budgets: the format of the files in `recipes/budgets/`, and how a benchmark stands in for a device."""

from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recipes.core.errors import UserError
from recipes.schema.benchmark_section import BenchmarkSection
from recipes.schema.budget_section import BudgetSection


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class BudgetLimits(_Part):
    """Upper limits on what an artefact may cost on the device. Null means no limit."""

    clip_p95_ms: float | None = Field(default=None, gt=0)
    """95th percentile of the time to transcribe a whole clip, in milliseconds."""
    rtf: float | None = Field(default=None, gt=0)
    """Real-time factor: computing time divided by the duration of the audio."""
    peak_rss_mb: float | None = Field(default=None, gt=0)
    """Peak resident memory of the process, in MB (10^6 bytes)."""
    size_mb: float | None = Field(default=None, gt=0)
    """Size of the weight files, in MB (10^6 bytes)."""
    wer_increase: float | None = None
    """Macro-averaged WER minus the teacher's, in percentage points."""


class SpeedRatio(_Part):
    """A published speed ratio between the device and one machine that is measured in its place."""

    cpu: str
    """The machine that the ratio holds for, as a part of its processor's name."""
    factor: float = Field(gt=0)
    """Time on the device divided by time on that machine."""
    source: str
    """Where the ratio is published."""


class DeviceBudget(_Part):
    """The contents of one file in `recipes/budgets/`."""

    name: str
    """Name of the device class."""
    description: str
    """The kind of device and use that the budget is meant for."""
    source: str
    """Reasons for the limits: which are published, and which are the project's own choice."""
    cpu: str | None = None
    """Processor of the device. Null if the measuring machine is the device itself."""
    threads: int | None = Field(default=None, gt=0)
    """Number of threads that recognition may use on the device. Null takes `benchmark.threads` from the recipe."""
    memory_mb: float | None = Field(default=None, gt=0)
    """Resident memory in MB (10^6 bytes) above which the device ends the process. Null means no cap."""
    scale: SpeedRatio | None = None
    """Ratio that measured times are multiplied by. Null leaves them as they were measured."""
    limits: BudgetLimits
    """The limits an artefact has to keep."""


class MeasurementSettings(NamedTuple):
    """How a measuring process is run so that it stands in for a device."""

    threads: int
    memory_mb: float | None


def load_budget(path: Path) -> DeviceBudget:
    """Read a budget file. Raises UserError if it is unreadable, is not YAML or has invalid fields."""
    try:
        return DeviceBudget.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"budget.device {path}: expected a readable YAML file, found {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise UserError(f"budget.device {path}: {problems}") from error


def load_budgets(section: BudgetSection | None) -> list[DeviceBudget]:
    """Read all budget files of a recipe's budget section, `device` first; an absent section has none.

    Raises UserError if two of them have the same name.
    """
    budgets = [load_budget(path) for path in section.devices] if section else []
    names = [budget.name for budget in budgets]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"budget.also: expected each device once, found {repeated} twice; name another file")
    return budgets


def settings_for_device(section: BenchmarkSection, budget: DeviceBudget | None = None) -> MeasurementSettings:
    """Return the threads and the memory cap that `budget` asks for; without one, those of the benchmark section."""
    if budget is None:
        return MeasurementSettings(section.threads, None)
    return MeasurementSettings(budget.threads or section.threads, budget.memory_mb)


def emulated_settings(
    section: BenchmarkSection | None, budget_section: BudgetSection | None
) -> dict[str, MeasurementSettings]:
    """Return the settings of each device, by name, that differ from the benchmark's own settings."""
    if section is None:
        return {}
    settings = {budget.name: settings_for_device(section, budget) for budget in load_budgets(budget_section)}
    return {name: wanted for name, wanted in settings.items() if wanted != settings_for_device(section)}
