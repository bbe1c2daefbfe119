"""A device and its budget: the files of recipes/budgets/."""

from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recipes.core.errors import UserError
from recipes.schema.recipe import Recipe


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class BudgetLimits(_Part):
    """What an artefact may cost; null is no limit."""

    clip_p95_ms: float | None = Field(default=None, gt=0)
    """95th percentile of a clip's whole transcription, milliseconds."""
    rtf: float | None = Field(default=None, gt=0)
    """Real-time factor: computing time over audio time."""
    peak_rss_mb: float | None = Field(default=None, gt=0)
    """Peak resident memory of the process, 10^6 bytes."""
    size_mb: float | None = Field(default=None, gt=0)
    """Weight files, 10^6 bytes."""
    wer_increase: float | None = None
    """Macro WER above the teacher's, percentage points."""


class SpeedRatio(_Part):
    """A published ratio between the device and one machine that measures in its stead."""

    cpu: str
    """The measuring machine it holds for: a part of its processor's name."""
    factor: float = Field(gt=0)
    """Time on the device over time on that machine."""
    source: str
    """Where the ratio is published."""


class DeviceBudget(_Part):
    """One file of recipes/budgets/."""

    name: str
    """Device class."""
    description: str
    """What kind of device and use is meant."""
    source: str
    """Why these limits: what is published, and what is the project's own choice."""
    cpu: str | None = None
    """The device's processor; null where the measuring machine is the device."""
    threads: int | None = Field(default=None, gt=0)
    """Threads recognition may use there; null takes the recipe's benchmark.threads."""
    memory_mb: float | None = Field(default=None, gt=0)
    """Resident memory, 10^6 bytes, above which the process is ended there; null is no cap."""
    scale: SpeedRatio | None = None
    """Times are multiplied by its factor; null leaves them as measured."""
    limits: BudgetLimits
    """The limits."""


class MeasurementSettings(NamedTuple):
    """How a variant is run to stand for a device."""

    threads: int
    memory_mb: float | None


def load_budget(path: Path) -> DeviceBudget:
    """Read a budget file; UserError in one line for anything wrong in it."""
    try:
        return DeviceBudget.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"budget.device {path}: expected a readable YAML file, found {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise UserError(f"budget.device {path}: {problems}") from error


def load_budgets(recipe: Recipe) -> list[DeviceBudget]:
    """The recipe's budgets, the one that may be required first. UserError for two of one name."""
    found = [load_budget(path) for path in recipe.budget.devices] if recipe.budget else []
    names = [budget.name for budget in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"budget.also: expected each device once, found {twice} twice; name another file")
    return found


def settings_for_device(recipe: Recipe, budget: DeviceBudget | None = None) -> MeasurementSettings:
    """The benchmark's own threads without a cap, or what a budget asks for in their stead."""
    assert recipe.benchmark is not None
    threads = recipe.benchmark.threads
    return MeasurementSettings((budget.threads or threads) if budget else threads, budget.memory_mb if budget else None)


def emulated_settings(recipe: Recipe) -> dict[str, MeasurementSettings]:
    """By device what its budget asks for, where that is not what the benchmark does anyway."""
    own = settings_for_device(recipe) if recipe.benchmark is not None else None
    asked = {budget.name: settings_for_device(recipe, budget) for budget in load_budgets(recipe) if own}
    return {name: wanted for name, wanted in asked.items() if wanted != own}
