"""Command: write the labels of long, split recordings as subtitles.

    python -m data_prep.export_subtitles recipes/NAME/recipe.yaml runs/NAME/srt

Reads the finished `labels` stage and writes one SRT file per recording to the output folder.
"""

import argparse
from pathlib import Path

from data_prep.labels.label_store import read_labels
from data_prep.labels.timeline import build_timeline
from eval.decoding.subtitles import format_subtitles
from recipes.core.atomic_files import atomic_write
from recipes.core.errors import UserError, run_main
from recipes.schema.recipe import load_recipe


def main() -> None:
    """Write an SRT file for each recording that was split."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.export_subtitles", description=main.__doc__)
    parser.add_argument("recipe", type=Path, help="recipe file of the run")
    parser.add_argument("output", type=Path, help="folder for the SRT files")
    args = parser.parse_args()
    folder = load_recipe(args.recipe).root / "labels"
    labels = [label for label in read_labels(folder) if "#t=" in label.id]
    if not labels:
        raise UserError(
            f"{folder}: expected labels of split recordings, found none; run the labels stage on long audio"
        )
    for recording, cues in build_timeline(labels).items():
        file = args.output / f"{recording.replace('/', '-')}.srt"
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as temporary:
            temporary.write_text(format_subtitles(cues, "srt"))
        print(f"{file}: {len(cues)} subtitles")


if __name__ == "__main__":
    run_main(main)
