"""The stages in order: how each is run, what it reads, what makes it stale."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recipes.schema.recipe import Recipe


@dataclass(frozen=True)
class Spec:
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


MODELS = ("student", "train", "compress", "heal")
"""Stages that leave a student, each the better or smaller one of the one before."""

FLOW = (
    Spec("corpus", "python -m data_prep.corpus", ("corpus", "seed"), outside=("sources",)),
    Spec(
        "labels",
        "accelerate launch data_prep/pseudo_label.py",
        ("labels", "teacher"),
        ("corpus",),
        ("teacher",),
    ),
    Spec("quality", "python -m data_prep.quality", ("quality",), ("labels",)),
    Spec("student", "python -m distill.student", ("student", "teacher", "seed"), (), ("teacher", "init")),
    Spec(
        "train",
        "accelerate launch distill/train.py",
        ("train", "teacher", "seed"),
        ("corpus", "labels", "quality", "student"),
        ("teacher",),
    ),
    Spec("compress", "python -m distill.compress", ("compress",), ("corpus", "labels", "quality", "student", "train")),
    Spec(
        "heal",
        "accelerate launch distill/train.py --stage heal",
        ("heal", "teacher", "seed"),
        ("corpus", "labels", "quality", "compress"),
        ("teacher",),
    ),
    Spec("export", "python -m distill.export", ("export", "teacher"), ("corpus", *MODELS)),
    Spec(
        "eval",
        "python -m eval.accuracy",
        ("eval", "teacher", "seed"),
        ("corpus", *MODELS, "export"),
        ("teacher", "eval"),
    ),
    Spec(
        "benchmark",
        "python -m eval.benchmark",
        ("benchmark", "teacher"),
        ("corpus", *MODELS, "export"),
        ("teacher", "emulation"),
    ),
    Spec(
        "report",
        "python -m eval.report",
        ("budget", "beside"),
        ("corpus", "labels", "quality", *MODELS, "export", "eval", "benchmark"),
        ("budget", "beside"),
    ),
    Spec(
        "release",
        "python -m distill.release",
        ("release",),
        ("corpus", "labels", "quality", *MODELS, "export", "eval", "benchmark", "report"),
    ),
)
SPECS = {spec.name: spec for spec in FLOW}


def stages(recipe: Recipe) -> list[Spec]:
    """The stages of this recipe in order; a stage whose section is null is left out."""
    sections = {"quality": recipe.labels, "report": recipe}
    return [spec for spec in FLOW if sections.get(spec.name, getattr(recipe, spec.name, None)) is not None]


def needs(recipe: Recipe, name: str) -> list[str]:
    """Earlier stages that `name` reads in this recipe."""
    present = {spec.name for spec in stages(recipe)}
    return [need for need in SPECS[name].needs if need in present]


def before(recipe: Recipe, name: str) -> list[str]:
    """All earlier stages that `name` rests on, however far back, in order."""
    found = set(needs(recipe, name))
    found |= {earlier for need in found for earlier in before(recipe, need)}
    return [spec.name for spec in FLOW if spec.name in found]


def checkpoint(recipe: Recipe, before: str = "export") -> Path:
    """Folder of the student as the last stage of this recipe that changes it, before the given one, has left it."""
    made = [spec.name for spec in stages(recipe)]
    earlier = MODELS[: MODELS.index(before)] if before in MODELS else MODELS
    return recipe.root / [name for name in earlier if name in made][-1] / "model"
