"""`sottovoce new`: look at a teacher, some audio and this machine, and write a recipe that runs.

    sottovoce new mine --teacher openai/whisper-small --audio recordings/ --language en
    sottovoce new mine --teacher openai/whisper-tiny.en --audio recordings/ --budget recipes/budgets/laptop.yaml

The audio is a folder of files, or an audiofolder (`metadata.jsonl` or `.csv` with `file_name` and `text`), perhaps in
`train`, `validation` and `test`. Nothing is decoded, trained or downloaded here.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.survey.audio_survey import survey_audio
from data_prep.survey.machine_survey import survey_machine
from data_prep.survey.recipe_defaults import NewRecipe, draft_recipe
from recipes.core.errors import UserError, run_main
from recipes.core.model_folder import local_model_folder
from recipes.core.whisper_shape import HUB_SHAPES, WhisperShape
from recipes.engine.check import model_shape
from recipes.engine.recipe_writer import refuse_existing, write_recipe

BUDGETS = Path("recipes/budgets")
"""Where a budget given by its name alone is looked for."""


def main() -> None:
    """Survey, choose, write, and say which command comes next."""
    args = _parse_arguments()
    path = args.write or Path("recipes") / args.name / "recipe.yaml"
    refuse_existing(path, "--write" if args.write else "NAME")
    # 1. The teacher: its shape, and whether it knows languages other than English.
    shape, english_only, has_english_table, unknown = _survey_teacher(args.teacher)
    # 2. The audio and the machine.
    audio = [survey_audio(folder) for folder in args.audio]
    machine = survey_machine()
    found = [f"audio    {survey.describe()}" for survey in audio] + [f"machine  {machine.describe()}"]
    print("\n".join(found))
    # 3. Values that fit them, written with their reasons and checked.
    new = NewRecipe(
        name=args.name, teacher=args.teacher, shape=shape, english_only=english_only,
        has_english_table=has_english_table, language=args.language, audio=audio, machine=machine,
        budget=_budget_file(args.budget),
    )  # fmt: skip
    header = [f"Written by `{shlex.join(['sottovoce', 'new', *sys.argv[1:]])}`.", *found, *unknown]
    print("\n".join(write_recipe(path, draft_recipe(new, header), option="NAME")))
    # 4. What to do next.
    print(f"recipe   {path}\nnext     sottovoce run {path}")


def _survey_teacher(model: str) -> tuple[WhisperShape, bool, bool, list[str]]:
    """Return the teacher's shape, whether it is English-only, whether it has the English table, and a remark."""
    shape, folder = model_shape(model, "--teacher"), local_model_folder(model, "--teacher")
    if folder is None:
        remark = [] if shape else [f"{model} is not known here: learning rate and steps are those of whisper-small."]
        return shape or HUB_SHAPES["openai/whisper-small"], model.endswith(".en"), True, remark
    assert shape is not None
    generation = json.loads((folder / "generation_config.json").read_text())
    return shape, not generation.get("lang_to_id"), (folder / "normalizer.json").is_file(), []


def _budget_file(budget: str | None) -> Path | None:
    """Return the budget file given by its path, or by its name in recipes/budgets."""
    if budget is None:
        return None
    candidates = [Path(budget), BUDGETS / f"{budget}.yaml"]
    for path in candidates:
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in BUDGETS.glob("*.yaml")))
    raise UserError(f"--budget: expected a budget file or one of {known}, found {budget}; correct it")


def _parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sottovoce new",
        description="Look at a teacher, some audio and this machine, and write a recipe that runs.",
    )
    parser.add_argument("name", help="name of the run; the recipe is written to recipes/NAME/recipe.yaml")
    parser.add_argument("--teacher", required=True, help="Hub id or local folder of a model in Whisper format")
    parser.add_argument("--audio", required=True, type=Path, nargs="+", help="one or more folders of audio")
    parser.add_argument("--language", help="language code of the speech, such as en; needed for multilingual teachers")
    parser.add_argument("--budget", help="device budget: a file, or a name in recipes/budgets such as laptop")
    parser.add_argument("--write", type=Path, metavar="FILE", help="where to write the recipe instead")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
