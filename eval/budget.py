"""A device budget: its limits, and the verdict on each artefact."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recipes.errors import UserError


class Limits(BaseModel):
    """What an artefact may cost; null is no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

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


class DeviceBudget(BaseModel):
    """One file of recipes/budgets/."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str
    """Device class."""
    description: str
    """What kind of device and use is meant."""
    source: str
    """Why these limits."""
    limits: Limits
    """The limits."""


_ROWS = (
    ("clip_p95_ms", "clip latency p95", "ms"),
    ("rtf", "real-time factor", ""),
    ("peak_rss_mb", "peak memory", "MB"),
    ("size_mb", "size on disk", "MB"),
    ("wer_increase", "WER above the teacher", "points"),
)


def load_budget(path: Path) -> DeviceBudget:
    """Read a budget file; UserError in one line for anything wrong in it."""
    try:
        return DeviceBudget.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"budget.device {path}: expected a readable YAML file, found {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise UserError(f"budget.device {path}: {problems}") from error


def verdict(budget: DeviceBudget, variant: Mapping[str, Any], wer_increase: float | None) -> dict[str, Any]:
    """One artefact against every limit; a limit whose figure was not measured is not kept."""
    measured = {
        "clip_p95_ms": variant["clip_ms"]["p95"],
        "rtf": variant["rtf"],
        "peak_rss_mb": variant["peak_rss_mb"],
        "size_mb": variant["size_mb"],
        "wer_increase": wer_increase,
    }
    rows = []
    for key, limit, unit in _ROWS:
        allowed, found = getattr(budget.limits, key), measured[key]
        if allowed is not None:
            kept = found is not None and found <= allowed
            rows.append({"limit": limit, "unit": unit, "allowed": allowed, "measured": found, "kept": kept})
    return {"artefact": variant["name"], "kept": all(row["kept"] for row in rows), "rows": rows}


def judge(
    budget: DeviceBudget,
    variants: Sequence[Mapping[str, Any]],
    macro_wer: Mapping[str, float],
    required: bool,
) -> dict[str, Any]:
    """Verdicts on the exports (on the student where nothing was exported); the smallest that passes is named."""
    teacher = next((macro_wer[row["name"]] for row in variants if row["role"] == "teacher" and macro_wer), None)
    judged = [row for row in variants if row["role"] == "export"] or [
        row for row in variants if row["role"] == "student"
    ]
    verdicts = []
    for row in judged:
        increase = macro_wer[row["name"]] - teacher if teacher is not None else None
        verdicts.append(verdict(budget, row, increase))
    sizes = {row["name"]: (row["size_mb"], row["clip_ms"]["p50"]) for row in judged}
    passing = [item["artefact"] for item in verdicts if item["kept"]]
    return {
        "device": budget.name, "description": budget.description, "source": budget.source, "required": required,
        "kept": bool(passing), "cheapest": min(passing, key=sizes.__getitem__, default=None), "verdicts": verdicts,
    }  # fmt: skip
