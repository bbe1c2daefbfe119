"""Stage `corpus`: any source of audio to one table of utterances.

    python -m data_prep.corpus recipes/demo/recipe.yaml

Writes utterances.parquet (`eval.audio.utterances`) and refused.json. Audio stays where it is; synthetic audio, and audio
that comes inside rows, is kept in the stage folder. Every file is decoded once here, so that a broken one is named now
and not days later; the hash of its samples makes later stages stale when a recording changes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from data_prep.audio.segmentation import SpeechDetector, pack_utterances, recording_id, split_recording
from data_prep.sources.discovery import SourceRecording, check_distinct_names, find_recordings, hash_fraction
from eval.audio.recordings import SAMPLE_RATE, AudioError, AudioReference, duration_of, read_blocks
from eval.audio.utterances import Utterance
from recipes.core.atomic_files import write_json
from recipes.core.errors import RunError, UserError, run_main
from recipes.engine.stage_folder import StageFolder, open_stage, parse_stage_arguments
from recipes.schema.corpus_section import CorpusSection

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class RefusedRecording:
    """A recording that cannot be used, and why."""

    path: str
    reason: str


def main() -> None:
    """Find, read, split what is long, pack what is short, write."""
    recipe, command = parse_stage_arguments("corpus")
    with open_stage(recipe, "corpus", command) as work:
        # 1. What each source names.
        found = {
            source.label: list(find_recordings(source, recipe.corpus, work.folder, recipe.seed))
            for source in check_distinct_names(recipe.corpus)
        }
        # 2. Every recording read once: its utterances, or the reason it is refused.
        utterances, refused = read_recordings(found, recipe.corpus)
        # 3. Nothing lost silently.
        _account(work, utterances, refused, recipe.corpus.max_error_rate)
        # 4. One table.
        whole = len(utterances)
        if recipe.corpus.pack:
            utterances = pack_utterances(utterances, recipe.corpus.max_seconds)
        rows = [vars(_settled(item, work)) for item in utterances]
        pq.write_table(pa.Table.from_pylist(rows, schema=Utterance.schema()), work.folder / "utterances.parquet")
        work.finish(
            counts={"utterances": len(utterances), "refused": len(refused), "packed": whole - len(utterances)},
            metrics={"splits": {split: _size(utterances, split) for split in SPLITS}},
        )


def _account(
    work: StageFolder, utterances: Sequence[Utterance], refused: Sequence[RefusedRecording], max_error_rate: float
) -> None:
    """Name what was refused; too much of it ends the stage."""
    write_json(work.folder / "refused.json", [vars(item) for item in refused])
    for item in refused:
        tqdm.write(f"corpus: refused {item.path}: {item.reason}")
    recordings = {recording_id(part) for item in utterances for part in item.parts}
    total = len(recordings) + len(refused)
    if not utterances:
        raise UserError(f"corpus.sources: expected audio, found none that can be read among {total} files")
    if len(refused) > max_error_rate * total:
        raise RunError(
            f"corpus: {len(refused)} of {total} files cannot be used, above corpus.max_error_rate "
            f"{max_error_rate}; named in {work.folder / 'refused.json'}"
        )


def _settled(item: Utterance, work: StageFolder) -> Utterance:
    """Where audio in the stage folder stands once that has its final name."""
    audio = [
        str(work.final / Path(part).relative_to(work.folder)) if Path(part).is_relative_to(work.folder) else part
        for part in item.audio
    ]
    return replace(item, audio=audio)


def _size(utterances: Sequence[Utterance], split: str) -> dict[str, float]:
    chosen = [item.seconds for item in utterances if item.split == split]
    return {"utterances": len(chosen), "hours": round(sum(chosen) / 3600, 4)}


def read_recordings(
    found: dict[str, list[SourceRecording]], corpus: CorpusSection
) -> tuple[list[Utterance], list[RefusedRecording]]:
    """Decode every recording once, in threads (libsndfile and ONNX Runtime release the interpreter lock)."""
    jobs = [(label, item) for label, items in found.items() for item in _limited(items, corpus.limit)]
    held_out = {label for label, items in found.items() if not any(item.split == "validation" for item in items)}
    utterances: list[Utterance] = []
    refused: list[RefusedRecording] = []
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda job: _read(job[0], job[1], corpus), jobs)
        for (label, _), result in tqdm(zip(jobs, results, strict=True), "corpus", len(jobs), unit="file"):
            if isinstance(result, RefusedRecording):
                refused.append(result)
                continue
            # By recording, so that no recording is in two splits.
            hold = label in held_out and result[0].split == "train"
            if hold and hash_fraction(recording_id(result[0].id)) < corpus.validation_fraction:
                result = [replace(item, split="validation") for item in result]
            utterances += result
    return utterances, refused


def _limited(items: list[SourceRecording], limit: int | None) -> Iterator[SourceRecording]:
    seen = dict.fromkeys(SPLITS, 0)
    for item in items:
        seen[item.split] += 1
        if limit is None or seen[item.split] <= limit:
            yield item


def _read(label: str, found: SourceRecording, corpus: CorpusSection) -> list[Utterance] | RefusedRecording:
    """The utterances of one recording: itself, or its pieces where it is longer than corpus.max_seconds."""
    try:
        if not found.audio:
            raise AudioError("no audio in its row")
        reference = AudioReference.parse(found.audio)
        long = duration_of(reference) > corpus.max_seconds
        samples, digest, speech = 0, hashlib.sha256(), SpeechDetector() if long else None
        for block in read_blocks(reference, seconds=60):
            samples += len(block)
            digest.update(block.astype(np.float32, copy=False).data)
            if speech is not None:
                speech.feed(block)
        seconds = samples / SAMPLE_RATE
        if seconds < corpus.min_seconds:
            raise AudioError(f"{seconds:.4f} s long, below corpus.min_seconds {corpus.min_seconds}")
        name = f"{label}/{found.name}"
        item = Utterance(
            name, label, found.split, [found.audio], seconds, found.text, found.speaker, found.language, [name],
            [seconds], digest.hexdigest(),
        )  # fmt: skip
        if speech is None:
            return [item]
        if not (pieces := split_recording(item, speech.probabilities, corpus.max_seconds)):
            raise AudioError(f"no speech in {seconds:.0f} s")
        return pieces
    except AudioError as error:
        return RefusedRecording(found.audio or f"{label}/{found.name}", str(error))


if __name__ == "__main__":
    run_main(main)
