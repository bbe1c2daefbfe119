"""TODO: distill.alignment_heads."""

import argparse
from pathlib import Path

from distill.exporters.head_selection import CLIPS, RECORD, select_alignment_heads, write_heads
from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import UserError, run_main
from recipes.schema.recipe import load_recipe


def main() -> None:
    """The heads of any model folder, such as a teacher's, by a recipe's labels."""
    parser = argparse.ArgumentParser(prog="python -m distill.alignment_heads", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("model", type=Path, help="folder with model.safetensors; its JSON files are written to")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    given = parser.parse_args()
    if (given.model.parent / RECORD).is_file():
        raise UserError(
            f"{given.model}: expected a model folder of its own, found a stage's output, which this would make stale; "
            "copy it, or set export.alignment_clips and release"
        )
    recipe = load_recipe(given.recipe, given.overrides)
    choice = select_alignment_heads(
        recipe, load_model(given.model), given.model, recipe.export.alignment_clips or CLIPS
    )
    write_heads(given.model, choice)
    print(f"{given.model}: heads {choice.heads}, {choice.error_ms:.0f} ms on {choice.strings} strings")


if __name__ == "__main__":
    run_main(main)
