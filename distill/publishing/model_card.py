"""The model card: every figure from the stage files, and the block that the Hub indexes (`model-index`).

`card.md` beside this file holds the words; a section whose figures are missing says so or is left out.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from distill.publishing.release_folder import released_files, write_text
from eval.reporting.report_page import format_figure, verdict_word
from recipes.core.whisper_shape import POSITIONS_PER_SECOND
from recipes.engine.flow import active_stages
from recipes.engine.freshness import read_record
from recipes.schema.recipe import Recipe

STUDENT, TEACHER = "student-torch-fp32", "teacher-torch-fp32"
LOADERS = {"onnx": ("onnx", "transformers.js"), "openvino": ("openvino",), "tflite": ("tflite",), "mobile": ("tflite",),
           "ctranslate2": ("ctranslate2",), "compressed_tensors": ("compressed-tensors",)}  # fmt: skip
"""What the Hub calls the formats, by runtime."""


def write_card(recipe: Recipe, folder: Path) -> None:
    """`README.md` of a release folder that holds all else already."""
    report = json.loads((folder / "report.json").read_text())
    front = card_metadata(recipe, report).to_yaml(line_break="\n")
    write_text(folder / "README.md", f"---\n{front}\n---\n\n{card_body(recipe, report, folder)}")


def card_metadata(recipe: Recipe, report: Mapping[str, Any]) -> ModelCardData:
    """The front matter: licence, languages, tags, data sets and teacher where they are the Hub's, and the results."""
    release = recipe.release
    assert release is not None
    runtimes = dict.fromkeys(runtime for _, runtime, _ in release.chosen(recipe.export))
    tags = ["whisper", "sottovoce", "distillation", *(tag for name in runtimes for tag in LOADERS[name])]
    hub = [source.hub.dataset for source in recipe.corpus.sources if source.hub and source.place is None]
    results = eval_results(recipe, report)
    return ModelCardData(
        language=student_languages(recipe), license=release.licence, library_name="transformers",
        pipeline_tag="automatic-speech-recognition", tags=list(dict.fromkeys([*tags, *release.tags])),
        base_model=None if Path(recipe.teacher.model).is_dir() else recipe.teacher.model, datasets=hub or None,
        metrics=["wer", "cer"] if results else None, model_name=recipe.name if results else None,
        eval_results=results or None,
    )  # fmt: skip


def student_languages(recipe: Recipe) -> list[str]:
    """Codes of what the student writes."""
    assert recipe.release is not None
    return recipe.release.language or [recipe.teacher.language or "en"]


def shipped_systems(recipe: Recipe) -> list[str]:
    """The systems in the folder: the safetensors, and each chosen export."""
    assert recipe.release is not None
    return [STUDENT, *(name for name, _, _ in recipe.release.chosen(recipe.export))]


def eval_results(recipe: Recipe, report: Mapping[str, Any]) -> list[EvalResult]:
    """WER and CER, percent, of each system in the folder on each test set."""
    hub = {source.label: source.hub for source in recipe.corpus.sources if source.hub and source.place is None}
    names, found = shipped_systems(recipe), []
    for system in (report["accuracy"] or {"systems": []})["systems"]:
        for label, result in system["results"].items() if system["name"] in names else ():
            source = hub.get(label)
            found += [
                EvalResult(
                    task_type="automatic-speech-recognition", task_name="Speech recognition", dataset_name=label,
                    dataset_type=source.dataset if source else label, dataset_config=source.config if source else None,
                    dataset_split="test", metric_type=metric, metric_value=round(result[metric]["value"], 2),
                    metric_name=f"{metric.upper()}, %, {system['name']}{_interval(result[metric])}",
                )
                for metric in ("wer", "cer")
            ]  # fmt: skip
    return found


def card_body(recipe: Recipe, report: Mapping[str, Any], folder: Path) -> str:
    """The card below its front matter."""
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
    config, names = json.loads((folder / "config.json").read_text()), shipped_systems(recipe)
    systems = {row["name"]: row for row in (report["accuracy"] or {"systems": []})["systems"]}
    variants = {row["name"]: row for row in (report["latency"] or {"variants": []})["variants"]}
    assert recipe.release is not None
    return environment.get_template("model_card.md").render(
        recipe=recipe,
        release=recipe.release,
        report=report,
        config=config,
        languages=student_languages(recipe),
        systems={name: systems[name] for name in (TEACHER, *names) if name in systems},
        variants={name: variants[name] for name in (TEACHER, *names) if name in variants},
        budgets=[report["budget"], *report["other_budgets"]] if report["budget"] else [],
        names=names,
        teacher=systems.get(TEACHER),
        student=systems.get(STUDENT),
        window_s=config["max_source_positions"] / POSITIONS_PER_SECOND,
        chosen=recipe.release.chosen(recipe.export),
        changed=any(folder.glob("modeling_*.py")),
        parameters_m=_parameters(report),
        english_only=recipe.teacher.language is None,
        records={
            spec.name: read_record(recipe.root / spec.name) for spec in active_stages(recipe) if spec.name != "release"
        },
        files=[
            (file.relative_to(folder).as_posix(), file.stat().st_size / 1e6)
            for file in released_files(folder)
            if file.name != "README.md"
        ],
        teacher_name=Path(recipe.teacher.model).name if recipe.teacher.model.startswith("/") else recipe.teacher.model,
    )


def _parameters(report: Mapping[str, Any]) -> Mapping[str, float]:
    """Encoder and decoder of the student as the last stage left it, millions."""
    compression = report["compression"]
    found: Mapping[str, float] = (
        compression["steps"][-1]["parameters_m"] if compression else report["student"]["student_parameters_m"]
    )
    return found


def format_interval(value: Mapping[str, float] | None, digits: int = 1) -> str:
    """`31.7 (27.5 to 36.0)`; the value alone where there is no interval."""
    return "" if value is None else f"{value['value']:.{digits}f}{_interval(value, digits)}"


def format_signed(value: Mapping[str, float] | None) -> str:
    """`+0.3 (-2.4 to 3.1)`; nothing where there is no value."""
    return "" if value is None else f"{value['value']:+.1f}{_interval(value)}"


def _interval(value: Mapping[str, float], digits: int = 1) -> str:
    return "" if value.get("low") is None else f" ({value['low']:.{digits}f} to {value['high']:.{digits}f})"
