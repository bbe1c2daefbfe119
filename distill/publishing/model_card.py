"""The model card of a release: its text, with every figure from the run, and the metadata that the Hub indexes.

The text is the template `model_card.md` in this folder. Sections without figures say so or are left out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from distill.publishing.release_folder import NamedArtefact, released_files, write_text
from eval.reporting.report_data import ReportData
from eval.reporting.report_sections import ModelParts
from eval.reporting.verdict_text import format_figure, verdict_word
from eval.scoring.accuracy_rows import AccuracyRow, Interval, OptionalInterval
from recipes.core.whisper_shape import POSITIONS_PER_SECOND
from recipes.engine.stage_record import StageRecord
from recipes.schema.corpus_section import AudioSource, HubDataset
from recipes.schema.labels_section import LabelsSection
from recipes.schema.release_section import ReleaseSection
from recipes.schema.teacher_section import TeacherSection
from recipes.schema.train_section import TrainSection

STUDENT, TEACHER = "student-torch-fp32", "teacher-torch-fp32"
"""Names of the two PyTorch models in a report."""

LIBRARY_TAGS = {"onnx": ("onnx", "transformers.js"), "openvino": ("openvino",), "tflite": ("tflite",),
                "mobile": ("tflite",), "ctranslate2": ("ctranslate2",),
                "compressed_tensors": ("compressed-tensors",)}  # fmt: skip
"""For each runtime the Hub's tags for its format."""


@dataclass(frozen=True)
class CardFacts:
    """Everything that a model card tells about a run."""

    name: str
    """Name of the run."""
    release: ReleaseSection
    teacher: TeacherSection
    sources: Sequence[AudioSource]
    labels: LabelsSection | None
    train: TrainSection | None
    heal: TrainSection | None
    artefacts: Sequence[NamedArtefact]
    """The exports in the release."""
    records: Mapping[str, StageRecord]
    """Records of the stages before `release`, by name."""
    report: ReportData

    @property
    def languages(self) -> list[str]:
        """Codes of the languages that the student writes."""
        return self.release.language or [self.teacher.language or "en"]

    @property
    def system_names(self) -> list[str]:
        """Names, as in the report, of the systems in the release: the safetensors, then each export."""
        return [STUDENT, *(name for name, _, _ in self.artefacts)]

    @property
    def systems(self) -> dict[str, AccuracyRow]:
        """Accuracy of each system of the report, by name; empty if it was not measured."""
        return {row.name: row for row in self.report.accuracy.systems} if self.report.accuracy else {}

    @property
    def hub_datasets(self) -> dict[str, HubDataset]:
        """The sources that are data sets on the Hub, by name."""
        return {source.label: source.hub for source in self.sources if source.hub and source.place is None}


def write_card(facts: CardFacts, folder: Path) -> None:
    """Write `README.md` into a release folder that is otherwise complete, except for its checksums."""
    metadata = card_metadata(facts).to_yaml(line_break="\n")
    write_text(folder / "README.md", f"---\n{metadata}\n---\n\n{card_body(facts, folder)}")


def card_metadata(facts: CardFacts) -> ModelCardData:
    """Return the card's metadata: licence, languages, tags, results, and teacher and data sets if the Hub has them."""
    runtimes = dict.fromkeys(runtime for _, runtime, _ in facts.artefacts)
    tags = ["whisper", "sottovoce", "distillation", *(tag for runtime in runtimes for tag in LIBRARY_TAGS[runtime])]
    results = eval_results(facts)
    return ModelCardData(
        language=facts.languages, license=facts.release.licence, library_name="transformers",
        pipeline_tag="automatic-speech-recognition", tags=list(dict.fromkeys([*tags, *facts.release.tags])),
        base_model=None if Path(facts.teacher.model).is_dir() else facts.teacher.model,
        datasets=[source.dataset for source in facts.hub_datasets.values()] or None,
        metrics=["wer", "cer"] if results else None, model_name=facts.name if results else None,
        eval_results=results or None,
    )  # fmt: skip


def eval_results(facts: CardFacts) -> list[EvalResult]:
    """Return WER and CER, in percent, of each released system on each test set."""
    results = []
    for system in facts.systems.values():
        for label, scores in system.results.items() if system.name in facts.system_names else ():
            source = facts.hub_datasets.get(label)
            results += [
                EvalResult(
                    task_type="automatic-speech-recognition", task_name="Speech recognition", dataset_name=label,
                    dataset_type=source.dataset if source else label, dataset_config=source.config if source else None,
                    dataset_split="test", metric_type=metric, metric_value=round(rate.value, 2),
                    metric_name=f"{metric.upper()}, %, {system.name}{_bounds(rate)}",
                )
                for metric, rate in (("wer", scores.wer), ("cer", scores.cer))
            ]  # fmt: skip
    return results


def card_body(facts: CardFacts, folder: Path) -> str:
    """Return the text of the card below its metadata."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "figure": format_figure,
        "interval": format_interval,
        "signed": format_signed,
        "word": verdict_word,
    }
    report, config = facts.report, json.loads((folder / "config.json").read_text())
    variants = {row.name: row for row in report.latency.variants} if report.latency else {}
    shown = (TEACHER, *facts.system_names)
    model = facts.teacher.model
    return environment.get_template("model_card.md").render(
        card=facts,
        release=facts.release,
        report=report,
        records=facts.records,
        config=config,
        languages=facts.languages,
        names=facts.system_names,
        systems={name: facts.systems[name] for name in shown if name in facts.systems},
        student=facts.systems.get(STUDENT),
        variants={name: variants[name] for name in shown if name in variants},
        window_s=config["max_source_positions"] / POSITIONS_PER_SECOND,
        custom_code=any(folder.glob("modeling_*.py")),
        parameters_m=_parameters_m(report),
        english_only=facts.teacher.language is None,
        files=[
            (file.relative_to(folder).as_posix(), file.stat().st_size / 1e6)
            for file in released_files(folder)
            if file.name != "README.md"
        ],
        teacher_name=Path(model).name if model.startswith("/") else model,
    )


def _parameters_m(report: ReportData) -> ModelParts:
    """Return the parameters of the released student, in millions."""
    if report.compression:
        return report.compression.steps[-1].parameters_m
    assert report.student is not None
    return report.student.student_parameters_m


def format_interval(rate: Interval | OptionalInterval | None, digits: int = 1) -> str:
    """Format a rate with its interval, `31.7 (27.5 to 36.0)`, or alone if it has none; empty for None."""
    return "" if rate is None else f"{rate.value:.{digits}f}{_bounds(rate, digits)}"


def format_signed(rate: Interval | None) -> str:
    """Format a difference with its sign and interval, `+0.3 (-2.4 to 3.1)`; empty for None."""
    return "" if rate is None else f"{rate.value:+.1f}{_bounds(rate)}"


def _bounds(rate: Interval | OptionalInterval, digits: int = 1) -> str:
    return "" if rate.low is None else f" ({rate.low:.{digits}f} to {rate.high:.{digits}f})"
