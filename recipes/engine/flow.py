"""The stages in order: how each is run, what it reads, what makes it stale."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recipes.schema.recipe import Recipe


@dataclass(frozen=True)
class Stage:
    """One stage of the flow."""

    name: str
    command: str
    """How it is run by itself, without the recipe."""
    sections: tuple[str, ...]
    """Recipe keys that make it stale when changed."""
    needs: tuple[str, ...] = ()
    """Earlier stages it reads."""
    outside: tuple[Literal["teacher", "init", "sources", "eval", "budget", "emulation", "beside"], ...] = ()
    """Files from outside the run that make it stale when changed."""


STUDENT_STAGES = ("student", "train", "compress", "heal")
"""Stages that leave a student, each the better or smaller one of the one before."""

STAGES = (
    Stage("corpus", "python -m data_prep.corpus", ("corpus", "seed"), outside=("sources",)),
    Stage(
        "labels",
        "accelerate launch data_prep/pseudo_label.py",
        ("labels", "teacher"),
        ("corpus",),
        ("teacher",),
    ),
    Stage("quality", "python -m data_prep.quality", ("quality",), ("labels",)),
    Stage("student", "python -m distill.student", ("student", "teacher", "seed"), (), ("teacher", "init")),
    Stage(
        "train",
        "accelerate launch distill/train.py",
        ("train", "teacher", "seed"),
        ("corpus", "labels", "quality", "student"),
        ("teacher",),
    ),
    Stage("compress", "python -m distill.compress", ("compress",), ("corpus", "labels", "quality", "student", "train")),
    Stage(
        "heal",
        "accelerate launch distill/train.py --stage heal",
        ("heal", "teacher", "seed"),
        ("corpus", "labels", "quality", "compress"),
        ("teacher",),
    ),
    Stage("export", "python -m distill.export", ("export", "teacher"), ("corpus", *STUDENT_STAGES)),
    Stage(
        "eval",
        "python -m eval.accuracy",
        ("eval", "teacher", "seed"),
        ("corpus", *STUDENT_STAGES, "export"),
        ("teacher", "eval"),
    ),
    Stage(
        "benchmark",
        "python -m eval.benchmark",
        ("benchmark", "teacher"),
        ("corpus", *STUDENT_STAGES, "export"),
        ("teacher", "emulation"),
    ),
    Stage(
        "report",
        "python -m eval.report",
        ("budget", "beside"),
        ("corpus", "labels", "quality", *STUDENT_STAGES, "export", "eval", "benchmark"),
        ("budget", "beside"),
    ),
    Stage(
        "release",
        "python -m distill.release",
        ("release",),
        ("corpus", "labels", "quality", *STUDENT_STAGES, "export", "eval", "benchmark", "report"),
    ),
)
STAGE_BY_NAME = {spec.name: spec for spec in STAGES}


def active_stages(recipe: Recipe) -> list[Stage]:
    """The stages of this recipe in order; a stage whose section is null is left out."""
    sections = {"quality": recipe.labels, "report": recipe}
    return [spec for spec in STAGES if sections.get(spec.name, getattr(recipe, spec.name, None)) is not None]


def inputs_of(recipe: Recipe, name: str) -> list[str]:
    """Earlier stages that `name` reads in this recipe."""
    present = {spec.name for spec in active_stages(recipe)}
    return [need for need in STAGE_BY_NAME[name].needs if need in present]


def all_inputs_of(recipe: Recipe, name: str) -> list[str]:
    """All earlier stages that `name` rests on, however far back, in order."""
    found = set(inputs_of(recipe, name))
    found |= {earlier for need in found for earlier in all_inputs_of(recipe, need)}
    return [spec.name for spec in STAGES if spec.name in found]


def student_folder(recipe: Recipe, before: str = "export") -> Path:
    """Folder of the student as the last stage of this recipe that changes it, before the given one, has left it."""
    made = [spec.name for spec in active_stages(recipe)]
    earlier = STUDENT_STAGES[: STUDENT_STAGES.index(before)] if before in STUDENT_STAGES else STUDENT_STAGES
    return recipe.root / [name for name in earlier if name in made][-1] / "model"
