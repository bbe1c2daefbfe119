"""Stage `release`: the student as a folder for others, then, when asked, on the Hub.

python -m distill.release recipes/NAME/recipe.yaml                    runs/NAME/release
python -m distill.release recipes/NAME/recipe.yaml --push             to the repository of its release section
python -m distill.release --verify runs/NAME/release                  the files against their SHA256SUMS
"""

import argparse
import shlex
from pathlib import Path

from distill.publishing.hub_push import push_release
from distill.publishing.model_card import write_card
from distill.publishing.release_folder import build_release_folder, released_files, verify_checksums, write_checksums
from recipes.core.errors import UserError, run_main
from recipes.engine.flow import STAGE_BY_NAME
from recipes.engine.stage_folder import open_stage
from recipes.schema.recipe import load_recipe


def main() -> None:
    """Make, push or verify a release."""
    given = _arguments()
    if given.verify is not None:
        print(f"{given.verify}: {verify_checksums(given.verify)} files as released")
        return
    recipe = load_recipe(given.recipe, given.overrides)
    if recipe.release is None:
        raise UserError(
            f"recipe {given.recipe}: expected a release section, found none; add it, or give release.licence=..."
        )
    if given.push:
        again = shlex.join(["sottovoce", "run", str(given.recipe), *given.overrides])
        push_release(recipe, given.repository, again)
        return
    command = shlex.join([*STAGE_BY_NAME["release"].command.split(), str(given.recipe), *given.overrides])
    with open_stage(recipe, "release", command) as work:
        build_release_folder(recipe, work.folder)
        write_card(recipe, work.folder)
        write_checksums(work.folder)
        files = released_files(work.folder)
        work.finish(counts={"files": len(files), "bytes": sum(file.stat().st_size for file in files)})
    print(f"release: {work.final}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sottovoce release", description=main.__doc__)
    parser.add_argument("recipe", type=Path, nargs="?", help="recipe file, such as recipes/demo/recipe.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--push", action="store_true", help="upload the finished release to the Hub")
    parser.add_argument("--repository", help="Hub id, owner/name; default: release.repository")
    parser.add_argument("--verify", type=Path, metavar="FOLDER", help="compare a release with its SHA256SUMS")
    given = parser.parse_intermixed_args()
    if (given.recipe is None) == (given.verify is None):
        parser.error("expected a recipe, or --verify FOLDER")
    if given.repository and not given.push:
        parser.error("--repository: only with --push")
    return given


if __name__ == "__main__":
    run_main(main)
