"""Choose the attention heads for word timestamps of any model folder, such as a teacher's, and write them into it.

    python -m distill.alignment_heads RECIPE MODEL

The heads are measured on the kept training labels of the recipe's run. The export stage does the same for the student
if the recipe sets `export.alignment_clips`.
"""

import argparse
from pathlib import Path

from distill.exporters.head_selection import DEFAULT_CLIPS, select_alignment_heads, write_heads
from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import UserError, run_main
from recipes.schema.recipe import load_recipe


def main() -> None:
    """Choose the heads, write them into the model folder's JSON files, and print them with their error."""
    parser = argparse.ArgumentParser(prog="python -m distill.alignment_heads", description=__doc__.split("\n", 1)[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("model", type=Path, help="folder with model.safetensors; its JSON files are changed")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    args = parser.parse_args()
    if (args.model.parent / "stage.json").is_file():
        raise UserError(
            f"{args.model}: expected a model folder outside of a run, found the output of a stage, which must not be "
            "changed; copy the folder, or set export.alignment_clips and export again"
        )
    recipe = load_recipe(args.recipe, args.overrides)
    choice = select_alignment_heads(
        load_model(args.model), args.model, recipe.root, recipe.export.alignment_clips or DEFAULT_CLIPS,
        seed=recipe.seed, language=recipe.teacher.language, task=recipe.teacher.task,
    )  # fmt: skip
    write_heads(args.model, choice)
    print(f"{args.model}: heads {choice.heads}, {choice.error_ms:.0f} ms on {choice.clips} clips")


if __name__ == "__main__":
    run_main(main)
