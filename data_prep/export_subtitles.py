"""TODO: data_prep.export_subtitles."""

import argparse
from pathlib import Path

from data_prep.labels.label_store import read_labels
from data_prep.labels.timeline import build_timeline, srt
from recipes.core.atomic_files import atomic_write
from recipes.core.errors import UserError, run_main
from recipes.schema.recipe import load_recipe


def main() -> None:
    """Write an SRT file for each recording that was split."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.export_subtitles", description=main.__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    folder = load_recipe(given.recipe).root / "labels"
    labels = [label for label in read_labels(folder) if "#t=" in label.id]
    if not labels:
        raise UserError(
            f"{folder}: expected labels of split recordings, found none; run the labels stage on long audio"
        )
    for name, lines in build_timeline(labels).items():
        file = given.output / f"{name.replace('/', '-')}.srt"
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as beside:
            beside.write_text(srt(lines))
        print(f"{file}: {len(lines)} lines")


if __name__ == "__main__":
    run_main(main)
