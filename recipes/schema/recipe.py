"""The recipe: one YAML for one student, its sections named after the stages.

Values come from, in rising order, the defaults below, the YAML file and `section.key=value` overrides.
Paths are relative to the working directory. `${oc.env:NAME,default}` reads an environment variable.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, Field, ValidationError, model_validator

from recipes.core.errors import UserError
from recipes.schema.benchmark_section import BenchmarkSection
from recipes.schema.budget_section import BudgetSection
from recipes.schema.compress_section import CompressSection
from recipes.schema.corpus_section import CorpusSection
from recipes.schema.eval_section import EvalSection
from recipes.schema.export_section import ExportSection
from recipes.schema.labels_section import LabelsSection
from recipes.schema.quality_section import QualitySection
from recipes.schema.release_section import ReleaseSection
from recipes.schema.section import Section
from recipes.schema.student_section import StudentSection
from recipes.schema.teacher_section import TeacherSection
from recipes.schema.train_section import HealSection, TrainSection


class Recipe(Section):
    """A whole recipe. A stage whose section is null is left out of the flow."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its stage folders are `runs/NAME/STAGE`."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    seed: int = 0
    """Seed of every draw."""
    launch: Path | None = None
    """accelerate configuration used by `sottovoce run` for labels and train; null takes accelerate's default."""
    teacher: TeacherSection
    """The model to learn from."""
    corpus: CorpusSection
    """Audio in."""
    labels: LabelsSection | None = None
    """Pseudo-labels."""
    quality: QualitySection = QualitySection()
    """Which labels are kept."""
    student: StudentSection
    """The cut."""
    train: TrainSection | None = None
    """Distillation; needs labels. Without it the untrained student is exported."""
    compress: CompressSection | None = None
    """What is taken out of the student after that."""
    heal: HealSection | None = None
    """Distillation of the compressed student; needs compress and labels. A section of its own, as each stage has one:
    new steps of healing compress nothing again."""
    export: ExportSection = ExportSection()
    """Device files."""
    eval: EvalSection | None = EvalSection()
    """Accuracy."""
    benchmark: BenchmarkSection | None = BenchmarkSection()
    """Latency and memory."""
    budget: BudgetSection | None = None
    """Verdict; needs benchmark."""
    release: ReleaseSection | None = None
    """The student for others; null makes no release."""
    beside: list[Path] = []
    """Finished runs, such as runs/small-shape, whose latency, memory and size the report shows after this one's."""

    @model_validator(mode="after")
    def _flow_is_whole(self) -> Self:
        for section in (self.train, self.heal):
            if section is not None:
                self._labels_suffice(section)
        if self.heal is not None and self.compress is None:
            raise ValueError("heal: needs a compress section; it trains what that leaves")
        if self.labels is not None and self.labels.text != "teacher" and self.labels.top_k:
            raise ValueError("labels.top_k: needs labels.text: teacher; transcripts hold no distribution")
        if self.student.init == "scratch" and self.train is None:
            raise ValueError("student.init: scratch needs a train section; random weights transcribe nothing")
        if self.budget is not None and self.benchmark is None:
            raise ValueError("budget: needs a benchmark section; write `benchmark: {}` for its defaults")
        trimmed = self.compress is not None and self.compress.vocabulary is not None
        if trimmed and self.eval is not None and self.eval.draft:
            raise ValueError("eval.draft: needs a student with its teacher's tokens; leave out compress.vocabulary")
        if self.release is not None:
            self.release.check(self.export, [source.label for source in self.corpus.sources])
        return self

    def _labels_suffice(self, section: TrainSection) -> None:
        name, labels = section.name, self.labels
        if labels is None:
            raise ValueError(f"{name}: needs a labels section; write `labels: {{}}` for its defaults")
        if section.timestamps and not labels.timestamps:
            raise ValueError(f"{name}.timestamps: needs labels with timestamps; set labels.timestamps: true")
        if section.teacher == "stored" and labels.source is None:
            if not labels.top_k and section.kl_weight:
                raise ValueError(f"{name}.teacher: stored needs labels with logits; set labels.top_k, such as 32")
            if labels.temperature != section.temperature:
                raise ValueError(
                    f"{name}.temperature: stored logits have their tail summed at labels.temperature "
                    f"{labels.temperature:g}, found {section.temperature:g}; make them equal"
                )

    @property
    def root(self) -> Path:
        """Folder of this run: `runs/NAME`."""
        return self.runs / self.name


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file with dotted overrides.

    Raises UserError, in one line with the file and the dotted key, for a missing or unparsable file, an
    override that is not `section.key=value`, an unknown key, a wrong type or a value out of range.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "recipe.yaml"
    if not path.is_file():
        raise UserError(f"recipe {path}: expected a YAML file, found none; see recipes/ for examples")
    try:
        config = OmegaConf.load(path)
        if not isinstance(config, DictConfig):
            raise UserError(f"recipe {path}: expected sections at the top level, found a list")
        for override in overrides:
            key, equals, _ = override.partition("=")
            if not equals or not key or key.startswith("-"):
                raise UserError(
                    f"override {override!r}: expected section.key=value, such as train.steps=500; found no usable key"
                )
            config = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
        values = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"recipe {path}: does not parse: {error}") from error
    return validate_recipe(values, str(path))


def validate_recipe(values: Any, where: str) -> Recipe:
    """Values to a Recipe; UserError lists every wrong key with what was expected and found."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(f"recipe {where}: {'; '.join(_explain(problem) for problem in error.errors())}") from error


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "recipe"
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; remove it or correct its spelling ({_siblings(problem['loc'][:-1])})"
    if problem["type"] == "missing":
        return f"{key}: expected a value, found none; add it"
    message = problem["msg"].removeprefix("Value error, ")
    found = problem["input"]
    shown = "" if isinstance(found, dict | BaseModel) else f", found {found!r}"
    return f"{key}: {message}{shown}"


def _siblings(location: Sequence[Any]) -> str:
    """The keys that may stand at a location: `known: a, b`."""
    node: Any = Recipe.model_json_schema()
    definitions = node["$defs"]
    for part in location:
        node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
        choices = [node, *node.get("anyOf", []), *node.get("allOf", [])]
        reference = next((choice["$ref"] for choice in choices if "$ref" in choice), None)
        node = definitions[reference.rsplit("/", 1)[-1]] if reference else node
    return "known: " + ", ".join(node.get("properties", {}))


def json_schema() -> str:
    """The recipe's JSON schema, for editors: `sottovoce schema > recipe.schema.json`."""
    return json.dumps(Recipe.model_json_schema(), indent=2)
