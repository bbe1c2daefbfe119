"""The files of a release, and their checksums.

config.json, tokenizer.json, ...       JSON and TXT files that other loaders read (`distill.exporters.folder_layout`)
model.safetensors                      the student; with its modelling file if its layers are not Whisper's own
onnx/, openvino-PRECISION/, ...        the exports that the recipe chooses
README.md                              the model card
recipe.yaml                            every value of the recipe, defaults included
report.html, report.json               all measurements
SHA256SUMS                             checksums of all the files above, in the format of `sha256sum -c SHA256SUMS`

In text files, absolute paths below the working folder, or next to it, are replaced by paths relative to it.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eval.runtimes.registry import weight_files
from recipes.core.atomic_files import atomic_write, write_json
from recipes.core.errors import UserError
from recipes.engine.stage_record import RECORD_FILE
from recipes.schema.export_section import Precision

SUMS = "SHA256SUMS"
"""Name of the file with the checksums."""

_ABSOLUTE_PATH = re.compile(r"(?<![\w./+-])/[\w./+-]+")

NamedArtefact = tuple[str, str, Precision]
"""Name, runtime and precision of an export, as `ExportSection.artefacts` lists them."""


@dataclass(frozen=True)
class ReleaseSources:
    """The results of a run that a release is made from."""

    student: Path
    """Model folder of the student."""
    export: Path
    """Model folder of the stage `export`."""
    report: Path
    """Folder of the stage `report`."""
    exported: Sequence[NamedArtefact]
    """All exports in the folder `export`."""
    chosen: Sequence[NamedArtefact]
    """The exports to release."""
    recipe: Mapping[str, Any]
    """Every value of the recipe."""


def build_release_folder(sources: ReleaseSources, folder: Path) -> None:
    """Write everything except the model card and the checksums. Model files are hard links to those of other stages."""
    for file in exported_files(sources.export, sources.exported, sources.chosen):
        link_or_copy(file, folder / file.relative_to(sources.export))
    for file in [*sorted(sources.student.glob("model*.safetensors*")), *sorted(sources.student.glob("modeling_*.py"))]:
        link_or_copy(file, folder / file.name)
    # The student's config.json has keys that only the safetensors need. Those that the export stage adds are kept.
    for_graphs, for_weights = (
        json.loads((model / "config.json").read_text()) for model in (sources.export, sources.student)
    )
    # The export stage chose this width together with the alignment heads, so its value wins.
    chosen_width = {key: for_graphs[key] for key in ("median_filter_width",) if key in for_graphs}
    write_json(folder / "config.json", {**for_graphs, **for_weights, **chosen_width})
    for name in ("report.html", "report.json"):
        write_text(folder / name, (sources.report / name).read_text())
    values = yaml.safe_dump(dict(sources.recipe), sort_keys=False, allow_unicode=True, width=120)
    write_text(folder / "recipe.yaml", values)


def exported_files(
    export: Path, exported: Sequence[NamedArtefact], chosen: Sequence[NamedArtefact]
) -> list[Path]:  # fmt: skip
    """Return the files of an export folder that the chosen artefacts need: their weights, and all files next to them.

    Args:
        export: Model folder of the stage `export`.
        exported: All artefacts in it.
        chosen: The artefacts whose files are returned.
    """
    weights = {name: weight_files(runtime, export, precision) for name, runtime, precision in exported}
    wanted = {file for name, _, _ in chosen for file in weights[name]}
    unwanted = {file for files in weights.values() for file in files} - wanted
    folders = {export, *(file.parent for file in wanted)}
    return sorted(
        file for file in export.rglob("*") if file.is_file() and file.parent in folders and file not in unwanted
    )


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy where the file system has no links. Replaces `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
        target.chmod(0o644)  # safetensors writes files that only their owner can read
    except OSError:
        target.unlink(missing_ok=True)
        shutil.copyfile(source, target)


def write_text(path: Path, text: str) -> None:
    """Write a text file of a release, with its paths relative to the working folder."""
    with atomic_write(path) as partial:
        partial.write_text(make_paths_relative(text, Path.cwd()))


def make_paths_relative(text: str, base: Path) -> str:
    """Replace every absolute path in `text` that is below `base`, or next to it, by the path relative to `base`."""

    def relative(match: re.Match[str]) -> str:
        path, parent = Path(match[0]), base.parent
        # The root folder is no neighbourhood: everything is below it.
        near = path.is_relative_to(base) or (parent != parent.parent and path.is_relative_to(parent))
        return os.path.relpath(path, base) if near else match[0]

    return _ABSOLUTE_PATH.sub(relative, text)


def released_files(folder: Path) -> list[Path]:
    """Return the files of a release in order: all except the stage's own record and hidden files."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file != folder / RECORD_FILE
    )  # fmt: skip


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of every released file, in the format of coreutils' sha256sum."""
    lines = [
        f"{_digest(file)}  {file.relative_to(folder).as_posix()}\n"
        for file in released_files(folder)
        if file != folder / SUMS
    ]
    with atomic_write(folder / SUMS) as partial:
        partial.write_text("".join(lines))


def verify_checksums(folder: Path) -> int:
    """Compare a release with its checksums and return the number of files.

    Raises UserError, which names the first file that was changed, is missing or was added.
    """
    sums = folder / SUMS
    if not sums.is_file():
        raise UserError(
            f"{folder}: expected a release with {SUMS}, found none; name a folder such as runs/demo/release"
        )
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in sums.read_text().splitlines())}
    present = {file.relative_to(folder).as_posix(): file for file in released_files(folder) if file != sums}
    wrong = [f"{name} is missing" for name in listed if name not in present]
    wrong += [f"{name} is not listed" for name in present if name not in listed]
    wrong += [
        f"{name} was changed" for name, file in present.items() if name in listed and _digest(file) != listed[name]
    ]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(f"{folder}: expected the files in {SUMS}, found that {wrong[0]}{more}; make the release again")
    return len(listed)


def release_tag(name: str, folder: Path) -> str:
    """Return the tag of a release on the Hub: the run's name and 8 digits of the SHA-256 of its checksums."""
    return f"{name}-{_digest(folder / SUMS)[:8]}"


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
