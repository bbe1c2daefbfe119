"""Stage `export`: write the student as files for devices, and compare each with PyTorch on real audio.

    python -m distill.export recipes/demo/recipe.yaml

`parity.json` holds the comparison. The stage fails if an artefact is beyond the recipe's tolerance.
"""

from distill.exporters.export_source import ExportSource
from distill.exporters.exporter_registry import write_artefacts
from distill.exporters.folder_layout import write_layout
from distill.exporters.head_selection import select_alignment_heads, write_heads
from distill.exporters.parity import TorchReference, parity_clips
from distill.exporters.parity_verdict import check_artefact
from eval.audio.utterances import read_utterances
from eval.decoding.transcriber import Transcriber
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from eval.scoring.error_rates import normalizer
from recipes.core.atomic_files import write_json
from recipes.core.errors import RunError, run_main
from recipes.engine.flow import student_folder
from recipes.engine.stage_folder import open_stage, parse_stage_arguments


def main() -> None:
    """Export every precision of the recipe and check its parity with PyTorch."""
    recipe, command = parse_stage_arguments("export")
    section, language, task = recipe.export, recipe.teacher.language, recipe.teacher.task
    with open_stage(recipe, "export", command) as stage:
        # 1. Write the model folder with all JSON files that other loaders read.
        source, folder = student_folder(recipe), stage.folder / "model"
        write_layout(source, folder)
        model = load_model(source)

        # 2. Choose the attention heads for word timestamps, if the recipe asks for them.
        if section.alignment_clips:
            heads = select_alignment_heads(
                model, source, recipe.root, section.alignment_clips, seed=recipe.seed, language=language, task=task
            )
            write_heads(folder, heads)
            write_json(stage.folder / "alignment.json", {"command": command, **heads.to_json()})

        # 3. Export every precision; quantizers calibrate on training audio.
        training_audio = [utterance.audio for utterance in read_utterances(recipe.root / "corpus", "train")]
        student = ExportSource(model, source, training_audio, section.smooth_quant, language, task)
        write_artefacts(student, folder, section)

        # 4. Compare each artefact with PyTorch: encoder states, logits and texts of validation clips.
        reference = TorchReference.measure(
            Transcriber(TorchRuntime(model), source, language, task),
            parity_clips(recipe.root / "corpus", section.parity.clips),
            section.parity.max_tokens,
            normalizer("basic", source),
        )
        rows = [check_artefact(artefact, student, folder, reference, section.parity) for artefact in section.artefacts]
        parity_file = stage.folder / "parity.json"
        artefacts = [row.to_json() for row in rows]
        write_json(parity_file, {"clips": len(reference.clips), "command": command, "artefacts": artefacts})

        # 5. Fail if one is beyond the tolerance.
        if failed := [row.describe() for row in rows if not row.kept]:
            raise RunError(f"export: {'; '.join(failed)}; all figures are in {parity_file}")
        stage.finish(
            counts={"artefacts": len(rows)},
            metrics={row.name: {"equal_text": row.figures.equal_text, "size_mb": row.size_mb} for row in rows},
        )


if __name__ == "__main__":
    run_main(main)
