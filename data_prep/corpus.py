"""Stage `corpus`: list the audio of all sources, check it and write one table of utterances.

    python -m data_prep.corpus recipes/demo/recipe.yaml

Writes utterances.parquet (columns: `eval.audio.utterances`) and refused.json, the recordings that cannot be used and
why. Audio files stay where they are; only synthetic audio and audio that is embedded in rows is stored in the stage's
folder.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.audio.corpus_reading import SPLITS, check_refused, read_recordings, relocate_audio
from data_prep.audio.segmentation import pack_utterances
from data_prep.sources.discovery import check_distinct_names, find_recordings
from eval.audio.utterances import Utterance
from recipes.core.atomic_files import write_json
from recipes.core.errors import run_main
from recipes.engine.stage_folder import open_stage, parse_stage_arguments


def main() -> None:
    """Find the recordings, read each once, split long ones, pack short ones and write the table."""
    recipe, command = parse_stage_arguments("corpus")
    corpus = recipe.corpus
    with open_stage(recipe, "corpus", command) as stage:
        # 1. List the recordings of each source. Synthetic and embedded ones are written to the stage's folder.
        check_distinct_names(corpus.sources)
        recordings = {
            source.label: list(
                find_recordings(
                    source, stage.folder, seed=recipe.seed, synthesis_test_fraction=corpus.synthesis_test_fraction
                )
            )
            for source in corpus.sources
        }
        # 2. Decode every recording once; long ones are split at silences.
        utterances, refused = read_recordings(recordings, corpus)
        # 3. Report the recordings that cannot be used; stop if there are too many.
        report = stage.folder / "refused.json"
        write_json(report, [vars(recording) for recording in refused])
        check_refused(utterances, refused, corpus.max_error_rate, report)
        # 4. Join short neighbours up to the teacher's window.
        packed = pack_utterances(utterances, corpus.max_seconds) if corpus.pack else utterances
        # 5. Write the table, with the paths that the audio has once the stage's folder gets its final name.
        rows = [vars(relocate_audio(utterance, stage.folder, stage.final)) for utterance in packed]
        pq.write_table(pa.Table.from_pylist(rows, schema=Utterance.schema()), stage.folder / "utterances.parquet")
        stage.finish(
            counts={"utterances": len(packed), "refused": len(refused), "packed": len(utterances) - len(packed)},
            metrics={"splits": {split: _split_size(packed, split) for split in SPLITS}},
        )


def _split_size(utterances: Sequence[Utterance], split: str) -> dict[str, float]:
    seconds = [utterance.seconds for utterance in utterances if utterance.split == split]
    return {"utterances": len(seconds), "hours": round(sum(seconds) / 3600, 4)}


if __name__ == "__main__":
    run_main(main)
