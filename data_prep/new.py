"""`sottovoce new`: look at a teacher, some audio and this machine, and write a recipe that runs.

    sottovoce new mine --teacher openai/whisper-small --audio recordings/ --language en
    sottovoce new mine --teacher openai/whisper-tiny.en --audio recordings/ --budget recipes/budgets/laptop.yaml

The audio is a folder of files, or an audiofolder (`metadata.jsonl` or `.csv` with `file_name` and `text`), perhaps in
`train`, `validation` and `test`. Nothing is decoded, trained or downloaded here.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.survey.audio_survey import survey_folders
from data_prep.survey.machine_survey import survey_machine
from data_prep.survey.new_recipe import NewRecipe
from data_prep.survey.recipe_defaults import draft_recipe
from data_prep.survey.teacher_survey import survey_teacher
from recipes.core.errors import UserError, run_main
from recipes.engine.recipe_writer import refuse_existing, shipped_file, write_recipe

BUDGETS = Path("recipes/budgets")
"""Where a budget given by its name alone is looked for."""


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Names that a run can have (`recipes.schema.recipe`), and that fit into a path."""

RESERVED = ("accelerate", "budgets", "core", "engine", "schema")
"""Folders of recipes/ that are no recipes."""


def main() -> None:
    """Survey, choose, write, and say which command comes next."""
    args = _parse_arguments()
    _check_name(args.name)
    option = "--write" if args.write else "NAME"
    path = args.write or Path("recipes") / args.name / "recipe.yaml"
    refuse_existing(path, option)
    budget = _budget_file(args.budget)
    # 1. The teacher: its shape, and the languages that it knows.
    teacher = survey_teacher(args.teacher)
    # 2. The audio and the machine.
    audio = survey_folders(args.audio)
    machine = survey_machine()
    found = [f"audio    {survey.describe()}" for survey in audio] + [f"machine  {machine.describe()}", *teacher.remarks]
    print("\n".join(found))
    # 3. Values that fit them, written with their reasons and checked.
    new = NewRecipe(
        name=args.name, teacher=args.teacher, shape=teacher.shape, english_only=teacher.english_only,
        has_english_table=teacher.has_english_table, language=args.language, audio=audio, machine=machine,
        budget=budget, known_languages=teacher.languages,
    )  # fmt: skip
    header = [f"Written by `{shlex.join(['sottovoce', 'new', *sys.argv[1:]])}`.", *found]
    print("\n".join(write_recipe(path, draft_recipe(new, header), option)))
    # 4. What to do next.
    print(f"recipe   {path}\nnext     {shlex.join(['sottovoce', 'run', str(path)])}")


def _check_name(name: str) -> None:
    """Raise UserError where a run cannot be called so."""
    if not NAME.fullmatch(name):
        raise UserError(
            "NAME: expected 1 to 100 letters, digits, dots, dashes and underscores, the first a letter or a digit, "
            f"found {name!r:.60}; choose another name"
        )
    if name in RESERVED:
        raise UserError(f"NAME: expected a name of your own, found {name}, a folder of sottovoce; choose another name")


def _budget_file(budget: str | None) -> Path | None:
    """Return the budget file given by its path, or by its name in recipes/budgets."""
    if budget is None:
        return None
    shipped = shipped_file(BUDGETS / f"{budget}.yaml")
    for path in (Path(budget), shipped):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in shipped_file(BUDGETS / "laptop.yaml").parent.glob("*.yaml")))
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
