"""Stage `export`: the student as files for devices, each compared with torch on real audio.

python -m distill.export recipes/demo/recipe.yaml
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill.exporters.export_source import ExportSource
from distill.exporters.exporter_registry import write_artefacts
from distill.exporters.folder_layout import write_layout
from distill.exporters.head_selection import select_alignment_heads, write_heads
from distill.exporters.layer_divergence import first_diverging_layer
from distill.exporters.parity import TorchReference, compare_with_torch
from eval.audio.utterances import read_utterances
from eval.decoding.transcriber import Transcriber
from eval.runtimes.registry import open_runtime, weight_files
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from eval.scoring.error_rates import normalizer
from recipes.core.atomic_files import write_json
from recipes.core.errors import RunError, UserError, run_main
from recipes.engine.flow import student_folder
from recipes.engine.stage_folder import open_stage, parse_stage_arguments
from recipes.schema.export_section import ParityTolerance, Precision
from recipes.schema.recipe import Recipe


def main() -> None:
    """Write every precision, compare each with torch, refuse what departs too far."""
    recipe, command = parse_stage_arguments("export")
    section = recipe.export
    with open_stage(recipe, "export", command) as work:
        # 1. The folder other loaders expect: every JSON of the student, the graphs beside them.
        source, folder = student_folder(recipe), work.folder / "model"
        write_layout(source, folder)
        model = load_model(source)
        if section.alignment_clips:
            choice = select_alignment_heads(recipe, model, source, section.alignment_clips)
            write_heads(folder, choice)
            write_json(work.folder / "alignment.json", {"command": command, **asdict(choice)})
        train = [item.audio for item in read_utterances(recipe.root / "corpus", "train")]
        student = ExportSource(model, source, train, section.smooth_quant, recipe.teacher.language, recipe.teacher.task)
        write_artefacts(student, folder, section)
        # 2. Torch's own encoder states, logits and texts.
        transcriber = Transcriber(TorchRuntime(student.model), source, recipe.teacher.language, recipe.teacher.task)
        reference = TorchReference.take(
            transcriber, parity_clips(recipe), section.parity.max_tokens, normalizer("basic", source)
        )
        # 3. Each artefact beside them.
        artefacts = [judge_artefact(artefact, folder, reference, section.parity) for artefact in section.artefacts]
        for row in artefacts:
            if not row["kept"]:
                found = first_diverging_layer(
                    student, row["runtime"], row["precision"], reference, row, row["tolerance"]["psnr_db"]
                )
                row["first_departure"] = str(found) if found else None
        write_json(
            work.folder / "parity.json",
            {"clips": len(reference.clips), "command": command, "artefacts": artefacts},
        )
        if failed := [row for row in artefacts if not row["kept"]]:
            raise RunError(
                f"export: {'; '.join(describe_divergence(row) for row in failed)}; all figures in {work.folder / 'parity.json'}"
            )
        work.finish(
            counts={"artefacts": len(artefacts)},
            metrics={row["name"]: {"equal_text": row["equal_text"], "size_mb": row["size_mb"]} for row in artefacts},
        )


def judge_artefact(
    artefact: tuple[str, str, Precision], folder: Path, reference: TorchReference, tolerance: ParityTolerance
) -> dict[str, Any]:
    """One artefact's size, its distance from torch, and whether that is within the tolerance."""
    name, runtime, precision = artefact
    row = compare_with_torch(reference, open_runtime(runtime, folder, precision, threads=2), name)
    limits = {
        "psnr_db": tolerance.min_psnr_db[precision],
        "equal_text": tolerance.min_equal_text[precision],
        "wer_increase": tolerance.max_wer_increase[precision],
    }
    size_mb = sum(file.stat().st_size for file in weight_files(runtime, folder, precision)) / 1e6
    identity = {"name": name, "runtime": runtime, "precision": precision, "size_mb": size_mb}
    return {**identity, **row, "tolerance": limits, "kept": within_tolerance(row, limits)}


def within_tolerance(row: dict[str, Any], limits: dict[str, float]) -> bool:
    """Whether all of an artefact's figures are."""
    wer = row["wer_increase"]
    return (
        min(row["encoder"]["psnr_db"], row["logits"]["psnr_db"]) >= limits["psnr_db"]
        and row["equal_text"] >= limits["equal_text"]
        and (wer is None or wer["value"] <= limits["wer_increase"])
    )


def parity_clips(recipe: Recipe) -> list[tuple[list[str], str | None]]:
    """Validation recordings and their transcripts; train ones where there are no others.

    Never test: nothing may be tuned on those.
    """
    count = recipe.export.parity.clips
    corpus = recipe.root / "corpus"
    chosen = read_utterances(corpus, "validation") or read_utterances(corpus, "train")
    if not chosen:
        raise UserError("export: expected validation or train audio for the parity check, found none in the corpus")
    return [(item.audio, item.text) for item in chosen[:: max(1, len(chosen) // count)][:count]]


def describe_divergence(row: dict[str, Any]) -> str:
    """In words how far an artefact is from torch, and where that begins."""
    wer, limits = row["wer_increase"], row["tolerance"]
    figures = [
        f"encoder {row['encoder']['psnr_db']:.1f} dB and logits {row['logits']['psnr_db']:.1f} dB (at least "
        f"{limits['psnr_db']:g})",
        f"equal text {row['equal_text']:.2f} (at least {limits['equal_text']:g})",
    ]
    if wer:
        figures.append(f"WER {wer['value']:+.1f} points ({wer['low']:.1f} to {wer['high']:.1f}; at most "
                       f"{limits['wer_increase']:+g})")  # fmt: skip
    words = f"{row['name']} departs from torch: " + ", ".join(figures)
    return f"{words}; {row['first_departure']}" if row["first_departure"] else words


if __name__ == "__main__":
    run_main(main)
