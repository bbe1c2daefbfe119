"""Stage `export`: the student as files for devices, each compared with torch on real audio.

python -m distill.export recipes/demo/recipe.yaml
"""

from distill.export import EXPORTERS, Student
from distill.export.layout import write_layout
from distill.export.parity import Reference, compare
from eval.runtimes import open_runtime, weight_files
from eval.runtimes.torch import TorchRuntime, load_model
from eval.runtimes.transcriber import Transcriber
from eval.utterances import read_utterances
from recipes.errors import RunError, UserError, run_main
from recipes.flow import checkpoint
from recipes.schema import Recipe
from recipes.stage import arguments, open_stage, write_json


def main() -> None:
    """Write every precision, compare each with torch, refuse what departs too far."""
    recipe, command = arguments("export")
    section, tolerance = recipe.export, recipe.export.parity
    with open_stage(recipe, "export", command) as work:
        # 1. The folder other loaders expect: every JSON of the student, the graphs under onnx/.
        source, folder = checkpoint(recipe), work.folder / "model"
        write_layout(source, folder)
        model = load_model(source)
        student = Student(model, source, [item.audio for item in read_utterances(recipe.root / "corpus", "train")])
        for runtime, export in EXPORTERS.items():
            if not (precisions := getattr(section, runtime)):
                continue
            try:
                export(student, folder, precisions)
            except ModuleNotFoundError as error:
                extra = "tflite" if runtime == "mobile" else runtime
                raise UserError(
                    f"export.{runtime}: needs the package {error.name}, found none; pip install 'sottovoce[{extra}]'"
                ) from error
        # 2. Torch's own encoder states, logits and texts.
        transcriber = Transcriber(TorchRuntime(model), source, recipe.teacher.language, recipe.teacher.task)
        reference = Reference.take(transcriber, parity_clips(recipe), tolerance.max_tokens)
        # 3. Each artefact beside them.
        artefacts = []
        for artefact, runtime, precision in section.artefacts:
            row = compare(reference, open_runtime(runtime, folder, precision, threads=2), artefact)
            limits = {
                "psnr_db": tolerance.min_psnr_db[precision],
                "equal_text": tolerance.min_equal_text[precision],
            }
            kept = (
                min(row["encoder"]["psnr_db"], row["logits"]["psnr_db"]) >= limits["psnr_db"]
                and row["equal_text"] >= limits["equal_text"]
            )
            size_mb = sum(file.stat().st_size for file in weight_files(runtime, folder, precision)) / 1e6
            artefacts.append(
                {
                    "name": artefact,
                    "precision": precision,
                    "size_mb": size_mb,
                    **row,
                    "tolerance": limits,
                    "kept": kept,
                }
            )
        write_json(
            work.folder / "parity.json",
            {"clips": len(reference.clips), "command": command, "artefacts": artefacts},
        )
        failed = [row for row in artefacts if not row["kept"]]
        if failed:
            raise RunError(
                f"export: {'; '.join(_departure(row) for row in failed)}; all figures in {work.folder / 'parity.json'}"
            )
        work.finish(
            counts={"artefacts": len(artefacts)},
            metrics={row["name"]: {"equal_text": row["equal_text"], "size_mb": row["size_mb"]} for row in artefacts},
        )


def parity_clips(recipe: Recipe) -> list[list[str]]:
    """Validation recordings; train ones where there are no others. Never test: nothing may be tuned on those."""
    count = recipe.export.parity.clips
    corpus = recipe.root / "corpus"
    chosen = read_utterances(corpus, "validation") or read_utterances(corpus, "train")
    if not chosen:
        raise UserError("export: expected validation or train audio for the parity check, found none in the corpus")
    return [item.audio for item in chosen[:: max(1, len(chosen) // count)][:count]]


def _departure(row: dict[str, object]) -> str:
    return (
        f"{row['name']} departs from torch: encoder {_psnr(row['encoder'])}, logits {_psnr(row['logits'])}, "
        f"equal text {row['equal_text']:.2f}, tolerance {row['tolerance']}"
    )


def _psnr(part: object) -> str:
    assert isinstance(part, dict)
    return f"{part['psnr_db']:.1f} dB"


if __name__ == "__main__":
    run_main(main)
