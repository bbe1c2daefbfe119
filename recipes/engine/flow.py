"""The flow: all stages in order, how each one is run, what it reads and what makes its result out of date."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recipes.schema.recipe import Recipe

CODE_ROOT = Path(__file__).resolve().parent.parent.parent
"""Folder that contains the packages: the checkout, or site-packages."""

ExternalInput = Literal["teacher", "init", "sources", "eval", "budget", "emulation", "beside"]
"""Inputs from outside the run: the teacher, the model in `student.init`, the audio sources, the folders that the eval
section names, budget files, the threads and the memory of their devices, and the runs listed under `beside`."""


@dataclass(frozen=True)
class Stage:
    """A stage of the flow."""

    name: str
    command: str
    """Command that runs the stage by itself, without the path of the recipe."""
    sections: tuple[str, ...]
    """Recipe keys that the result depends on."""
    inputs: tuple[str, ...] = ()
    """Earlier stages whose output the stage reads."""
    external_inputs: tuple[ExternalInput, ...] = ()
    """Inputs from outside the run that the result depends on."""

    @property
    def file(self) -> Path:
        """Python file that `command` runs."""
        target = self.command.split()[2]
        return CODE_ROOT / (target if target.endswith(".py") else f"{target.replace('.', '/')}.py")


STUDENT_STAGES = ("student", "train", "compress", "heal")
"""Stages that write a student, each starting from that of the previous one."""

STAGES = (
    Stage("corpus", "python -m data_prep.corpus", ("corpus", "seed"), external_inputs=("sources",)),
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
STAGE_BY_NAME = {stage.name: stage for stage in STAGES}


def active_stages(recipe: Recipe) -> list[Stage]:
    """Return the stages of a recipe in order. A stage whose section is null is left out."""
    # quality depends on labels and has no section that could be null; report has none at all
    sections = {"quality": recipe.labels, "report": recipe}
    return [stage for stage in STAGES if sections.get(stage.name, getattr(recipe, stage.name, None)) is not None]


def inputs_of(recipe: Recipe, name: str) -> list[str]:
    """Return the names of the earlier stages that the stage `name` reads in this recipe."""
    active = {stage.name for stage in active_stages(recipe)}
    return [earlier for earlier in STAGE_BY_NAME[name].inputs if earlier in active]


def all_inputs_of(recipe: Recipe, name: str) -> list[str]:
    """Return the names of all earlier stages that the stage `name` depends on, directly or indirectly, in order."""
    names = set(inputs_of(recipe, name))
    names |= {indirect for direct in names for indirect in all_inputs_of(recipe, direct)}
    return [stage.name for stage in STAGES if stage.name in names]


def student_folder(recipe: Recipe, before: str = "export") -> Path:
    """Return the model folder of the last stage of this recipe, before the stage `before`, that writes a student."""
    active = [stage.name for stage in active_stages(recipe)]
    earlier = STUDENT_STAGES[: STUDENT_STAGES.index(before)] if before in STUDENT_STAGES else STUDENT_STAGES
    return recipe.root / [name for name in earlier if name in active][-1] / "model"
