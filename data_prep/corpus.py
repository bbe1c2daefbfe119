"""Stage `corpus`: any source of audio to one table of utterances.

    python -m data_prep.corpus recipes/demo/recipe.yaml

Writes utterances.parquet (id, source, split, audio, seconds, text, speaker, sha256) and refused.json. Audio stays
where it is; synthetic audio is kept in the stage folder. Every file is decoded once here, so that a broken one is
named now and not days later; the hash of its samples makes later stages stale when a recording changes.
"""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from eval.audio import AUDIO_SUFFIXES, SAMPLE_RATE, AudioError, read_audio
from eval.utterances import Utterance
from recipes.errors import RunError, UserError, run_main
from recipes.schema import Corpus, Source
from recipes.stage import arguments, open_stage, write_json

SPLITS = ("train", "validation", "test")
_SPLIT_ALIASES = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation",
                  "test": "test"}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A file that a source names, before it was read."""

    split: str
    file_name: str
    """Relative to the source's folder; part of the id."""
    path: Path
    text: str | None
    speaker: str | None


@dataclass(frozen=True)
class Refused:
    """A file that cannot be used, and why."""

    path: str
    reason: str


def main() -> None:
    """Find, read, split, write."""
    recipe, command = arguments("corpus")
    with open_stage(recipe, "corpus", command) as work:
        # 1. What each source names.
        found = {
            source.label: list(find(source, recipe.corpus, work.folder, recipe.seed))
            for source in _distinct(recipe.corpus)
        }
        # 2. Every file read once: duration, hash, or the reason it is refused.
        utterances, refused = read_all(found, recipe.corpus)
        # 3. Nothing lost silently.
        write_json(work.folder / "refused.json", [vars(item) for item in refused])
        total = len(utterances) + len(refused)
        for item in refused:
            tqdm.write(f"corpus: refused {item.path}: {item.reason}")
        if not utterances:
            raise UserError(f"corpus.sources: expected audio, found none that can be read among {total} files")
        if len(refused) > recipe.corpus.max_error_rate * total:
            raise RunError(
                f"corpus: {len(refused)} of {total} files cannot be used, above corpus.max_error_rate "
                f"{recipe.corpus.max_error_rate}; named in {work.folder / 'refused.json'}"
            )
        # 4. One table.
        rows = [vars(item) | {"audio": _settled(item.audio, work.folder, work.final)} for item in utterances]
        table = pa.Table.from_pylist(rows, schema=Utterance.schema())
        pq.write_table(table, work.folder / "utterances.parquet")
        splits = {
            split: {
                "utterances": sum(item.split == split for item in utterances),
                "hours": round(sum(item.seconds for item in utterances if item.split == split) / 3600, 4),
            }
            for split in SPLITS
        }
        work.finish(counts={"utterances": len(utterances), "refused": len(refused)}, metrics={"splits": splits})


def _settled(audio: str, partial: Path, final: Path) -> str:
    """Where a synthetic recording stands once the stage folder has its final name."""
    path = Path(audio)
    return str(final / path.relative_to(partial)) if path.is_relative_to(partial) else audio


def _distinct(corpus: Corpus) -> list[Source]:
    twice = [label for label, count in Counter(source.label for source in corpus.sources).items() if count > 1]
    if twice:
        raise UserError(f"corpus.sources: two sources are called {twice[0]}; set `name` on one of them")
    return corpus.sources


def find(source: Source, corpus: Corpus, folder: Path, seed: int) -> Iterator[Found]:
    """The files of one source; synthetic ones are spoken first. UserError for a missing or empty source."""
    if source.synthesis is not None:
        yield from _synthesized(source, corpus, folder, seed)
        return
    place = source.audiofolder or source.audio
    assert place is not None
    key = "audiofolder" if source.audiofolder else "audio"
    if not place.is_dir():
        raise UserError(
            f"corpus.sources.{key}: expected a folder at {place} ({place.absolute()}), found none; correct the path"
        )
    named = {_SPLIT_ALIASES[child.name]: child for child in sorted(place.iterdir()) if child.name in _SPLIT_ALIASES}
    listing = _metadata if source.audiofolder else _bare
    some = False
    for split, child in (named or {"train": place}).items():
        for file_name, row in listing(child):
            some = True
            yield Found(split, f"{split}/{file_name}", child / file_name, row.get("text"), row.get("speaker"))
    if not some:
        raise UserError(f"corpus.sources.{key}: expected audio under {place}, found none; check the folder")


def _metadata(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in ("metadata.jsonl", "metadata.csv"):
        if (file := folder / name).is_file():
            break
    else:
        raise UserError(
            f"corpus.sources.audiofolder {folder}: expected metadata.jsonl or metadata.csv, found neither; "
            "for audio without transcripts write `audio:` instead"
        )
    with file.open(newline="", encoding="utf-8") as lines:
        rows: Iterable[Any] = csv.DictReader(lines) if name.endswith(".csv") else _json_lines(file, lines)
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict) or not row.get("file_name"):
                raise UserError(f"{file} row {number}: expected a file_name, found {row!r:.80}; add it")
            yield row["file_name"], row


def _json_lines(file: Path, lines: Iterable[str]) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{file} line {number}: expected a JSON object, found {line.strip()!r:.60}") from error


def _bare(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file():
            yield path.relative_to(folder).as_posix(), {}


def _synthesized(source: Source, corpus: Corpus, folder: Path, seed: int) -> Iterator[Found]:
    from data_prep.synthesize import VOICES, read_sentences, synthesize

    assert source.synthesis is not None
    sentences = read_sentences(source.synthesis.sentences)[: source.synthesis.limit]
    audio = folder / "audio" / source.label
    for row in synthesize(sentences, source.synthesis.voices or VOICES, audio, seed=seed):
        # By the sentence, so that no text is in two splits.
        split = "test" if _share(row["text"]) < corpus.synthesis_test_fraction else "train"
        yield Found(split, row["file_name"], audio / row["file_name"], row["text"], row["speaker"])


def read_all(found: dict[str, list[Found]], corpus: Corpus) -> tuple[list[Utterance], list[Refused]]:
    """Decode every file once, in threads (libsndfile releases the interpreter lock)."""
    jobs = [(label, item) for label, items in found.items() for item in _limited(items, corpus.limit)]
    held_out = {label for label, items in found.items() if not any(item.split == "validation" for item in items)}
    utterances, refused = [], []
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda job: _read(job[1]), jobs)
        for (label, item), result in tqdm(zip(jobs, results, strict=True), "corpus", len(jobs), unit="file"):
            if isinstance(result, Refused):
                refused.append(result)
                continue
            seconds, sha256 = result
            name = f"{label}/{item.file_name}"
            hold = item.split == "train" and label in held_out and _share(name) < corpus.validation_fraction
            split = "validation" if hold else item.split
            utterances.append(
                Utterance(name, label, split, str(item.path), seconds, item.text, item.speaker, sha256)
            )  # fmt: skip
    return utterances, refused


def _limited(items: list[Found], limit: int | None) -> Iterator[Found]:
    seen: Counter[str] = Counter()
    for item in items:
        seen[item.split] += 1
        if limit is None or seen[item.split] <= limit:
            yield item


def _read(item: Found) -> tuple[float, str] | Refused:
    try:
        samples = read_audio(item.path)
    except AudioError as error:
        return Refused(str(item.path), "no such file" if not item.path.exists() else str(error))
    return len(samples) / SAMPLE_RATE, hashlib.sha256(samples.tobytes()).hexdigest()


def _share(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


if __name__ == "__main__":
    run_main(main)
