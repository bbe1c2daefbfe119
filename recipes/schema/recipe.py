"""The recipe: one YAML file that describes one student, with a section for each stage.

Values come from the defaults of the schema, then the YAML file, then overrides (`section.key=value`); later ones win.
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
    """A recipe. A stage whose section is null is left out of the flow."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run. Its stage folders are `runs/NAME/STAGE`."""
    runs: Path = Path("runs")
    """Folder that contains all runs."""
    seed: int = 0
    """Seed of all random numbers."""
    launch: Path | None = None
    """Configuration file of accelerate with which `sottovoce run` starts labels, train and heal. Null uses accelerate's
    default."""
    teacher: TeacherSection
    """The model that the student learns from."""
    corpus: CorpusSection
    """Sources of audio."""
    labels: LabelsSection | None = None
    """Pseudo-labels by the teacher. Needed by train and heal."""
    quality: QualitySection = QualitySection()
    """Tests that a label must pass to be used in training."""
    student: StudentSection
    """The student before training."""
    train: TrainSection | None = None
    """Distillation. Needs labels. If null, the untrained student is exported."""
    compress: CompressSection | None = None
    """Compression of the student after training."""
    heal: HealSection | None = None
    """Distillation of the compressed student. Needs compress and labels. It is a stage of its own, so that changing it
    does not repeat the compression."""
    export: ExportSection = ExportSection()
    """Model files for devices."""
    eval: EvalSection | None = EvalSection()
    """Measurement of accuracy."""
    benchmark: BenchmarkSection | None = BenchmarkSection()
    """Measurement of latency and memory."""
    budget: BudgetSection | None = None
    """Devices to judge the artefacts for. Needs benchmark."""
    release: ReleaseSection | None = None
    """Release folder with the student and a model card. Null makes none."""
    beside: list[Path] = []
    """Finished runs, such as runs/small-shape, whose latency, memory and size the report shows next to those of this
    run."""

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        for section in (self.train, self.heal):
            if section is not None:
                self._check_labels_for(section)
        if self.heal is not None and self.compress is None:
            raise ValueError("heal: needs a compress section, because it trains the compressed student")
        if self.labels is not None and self.labels.text != "teacher" and self.labels.top_k:
            raise ValueError("labels.top_k: needs labels.text: teacher, because transcripts have no token distribution")
        if self.student.init == "scratch" and self.train is None:
            raise ValueError("student.init: scratch needs a train section, because random weights cannot transcribe")
        if self.budget is not None and self.benchmark is None:
            raise ValueError("budget: needs a benchmark section; write `benchmark: {}` for its defaults")
        smaller_vocabulary = self.compress is not None and self.compress.vocabulary is not None
        if smaller_vocabulary and self.eval is not None and self.eval.draft:
            raise ValueError("eval.draft: needs a student with its teacher's tokens; remove compress.vocabulary")
        if self.release is not None:
            self.release.check(self.export, [source.label for source in self.corpus.sources])
        return self

    def _check_labels_for(self, section: TrainSection) -> None:
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
                    f"{name}.temperature: expected {labels.temperature:g}, the labels.temperature of stored logits, "
                    f"found {section.temperature:g}; make them equal"
                )

    @property
    def root(self) -> Path:
        """Folder of this run: `runs/NAME`."""
        return self.runs / self.name


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply overrides of the form `section.key=value`.

    Raises UserError, with the file and the dotted key, if the file is missing or cannot be parsed, if an override does
    not have that form, if a key is unknown, or if a value has the wrong type or is out of range.
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
        raise UserError(f"recipe {path}: cannot be parsed: {error}") from error
    return validate_recipe(values, str(path))


def validate_recipe(values: Any, source: str) -> Recipe:
    """Create a recipe from plain values. `source` is named in errors.

    Raises UserError that lists all invalid keys with what was expected and found.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(f"recipe {source}: {'; '.join(_explain(problem) for problem in error.errors())}") from error


def _explain(problem: Any) -> str:
    """Return one error of pydantic as `key: expected ..., found ...`."""
    key = ".".join(str(part) for part in problem["loc"]) or "recipe"
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; remove it or correct its spelling ({_known_keys(problem['loc'][:-1])})"
    if problem["type"] == "missing":
        return f"{key}: expected a value, found none; add it"
    message = problem["msg"].removeprefix("Value error, ")
    value = problem["input"]
    found = "" if isinstance(value, dict | BaseModel) else f", found {value!r}"
    return f"{key}: {message}{found}"


def _known_keys(location: Sequence[Any]) -> str:
    """Return the valid keys of the section at `location`, as `known: a, b`."""
    node: Any = Recipe.model_json_schema()
    definitions = node["$defs"]
    for part in location:
        node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
        choices = [node, *node.get("anyOf", []), *node.get("allOf", [])]
        reference = next((choice["$ref"] for choice in choices if "$ref" in choice), None)
        node = definitions[reference.rsplit("/", 1)[-1]] if reference else node
    return "known: " + ", ".join(node.get("properties", {}))


def json_schema() -> str:
    """Return the JSON schema of a recipe, for editors: `sottovoce schema > recipe.schema.json`."""
    return json.dumps(Recipe.model_json_schema(), indent=2)
