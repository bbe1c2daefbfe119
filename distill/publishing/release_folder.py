"""Which files a release has, and their checksums.

config.json, tokenizer.json, ...       every JSON and TXT that other loaders read (`distill.exporters.folder_layout`)
model.safetensors                      the student, with its modelling file where its shape is not Whisper's own
onnx/, openvino-PRECISION/, ...        the exports that the recipe chooses, and nothing of the others
README.md                              the model card
recipe.yaml                            every value of the recipe, defaults too
report.html, report.json               all that was measured
SHA256SUMS                             of all of these; `sha256sum -c SHA256SUMS` reads it

Texts name what lies below the working folder, or beside it, as seen from there.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from eval.runtimes.registry import weight_files
from recipes.core.atomic_files import atomic_write, write_json
from recipes.core.errors import UserError
from recipes.engine.flow import student_folder
from recipes.schema.export_section import Precision
from recipes.schema.recipe import Recipe

SUMS = "SHA256SUMS"
RECORD = "stage.json"
"""The stage's own record; it does not travel."""

_ABSOLUTE = re.compile(r"(?<![\w./+-])/[\w./+-]+")

Artefact = tuple[str, str, Precision]


def build_release_folder(recipe: Recipe, folder: Path) -> None:
    """Everything but the card and the checksums; large files are links to those of earlier stages."""
    assert recipe.release is not None, "the flow has no such stage then"
    source, exported = student_folder(recipe), recipe.root / "export" / "model"
    chosen = recipe.release.chosen(recipe.export)
    for file in exported_files(exported, recipe.export.artefacts, chosen):
        link_or_copy(file, folder / file.relative_to(exported))
    for file in [*sorted(source.glob("model*.safetensors*")), *sorted(source.glob("modeling_*.py"))]:
        link_or_copy(file, folder / file.name)
    # The exports' config.json leaves out what only the safetensors need, theirs what the export stage adds.
    for_graphs, for_weights = (json.loads((path / "config.json").read_text()) for path in (exported, source))
    chosen_width = {key: for_graphs[key] for key in ("median_filter_width",) if key in for_graphs}
    write_json(folder / "config.json", {**for_graphs, **for_weights, **chosen_width})
    for name in ("report.html", "report.json"):
        write_text(folder / name, (recipe.root / "report" / name).read_text())
    values = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    write_text(folder / "recipe.yaml", values)


def exported_files(exported: Path, made: Sequence[Artefact], chosen: Sequence[Artefact]) -> list[Path]:
    """Of an export's model folder what the chosen artefacts are loaded from: their weights, and what lies by them."""
    weights = {name: weight_files(runtime, exported, precision) for name, runtime, precision in made}
    kept = {file for name, _, _ in chosen for file in weights[name]}
    others = {file for files in weights.values() for file in files} - kept
    places = {exported, *(file.parent for file in kept)}
    return sorted(
        file for file in exported.rglob("*") if file.is_file() and file.parent in places and file not in others
    )


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under another name, by a link where the disk has them; a copy where not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
        target.chmod(0o644)  # safetensors writes files that their owner alone may read
    except OSError:
        target.unlink(missing_ok=True)
        shutil.copyfile(source, target)


def write_text(path: Path, text: str) -> None:
    """A text of a release, its paths as `from_here` gives them."""
    with atomic_write(path) as beside:
        beside.write_text(make_paths_relative(text, Path.cwd()))


def make_paths_relative(text: str, here: Path) -> str:
    """The text with every absolute path in it that lies below the folder `here`, or beside it, as seen from there."""

    def seen(match: re.Match[str]) -> str:
        path, around = Path(match[0]), here.parent
        near = path.is_relative_to(here) or (around != around.parent and path.is_relative_to(around))
        return os.path.relpath(path, here) if near else match[0]

    return _ABSOLUTE.sub(seen, text)


def released_files(folder: Path) -> list[Path]:
    """What travels, in order: all but the stage's record and hidden files."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file != folder / RECORD
    )  # fmt: skip


def write_checksums(folder: Path) -> None:
    """SHA-256 of every file, in the form that coreutils' sha256sum checks."""
    lines = [
        f"{_digest(file)}  {file.relative_to(folder).as_posix()}\n"
        for file in released_files(folder)
        if file != folder / SUMS
    ]
    with atomic_write(folder / SUMS) as beside:
        beside.write_text("".join(lines))


def verify_checksums(folder: Path) -> int:
    """How many files there are, each as it was released; UserError names one that is not, is missing or new."""
    sums = folder / SUMS
    if not sums.is_file():
        raise UserError(f"{folder}: expected a release with {SUMS}, found none; such as runs/demo/release")
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in sums.read_text().splitlines())}
    found = {file.relative_to(folder).as_posix(): file for file in released_files(folder) if file != sums}
    wrong = [f"{name} is missing" for name in listed if name not in found]
    wrong += [f"{name} is not listed" for name in found if name not in listed]
    wrong += [f"{name} was changed" for name, file in found.items() if name in listed and _digest(file) != listed[name]]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(f"{folder}: expected what {SUMS} lists, found that {wrong[0]}{more}; make the release again")
    return len(listed)


def release_tag(name: str, folder: Path) -> str:
    """What the Hub calls this release: the run's name, and the beginning of its checksums' SHA-256."""
    return f"{name}-{_digest(folder / SUMS)[:8]}"


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
