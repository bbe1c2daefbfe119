"""Stage `labels`: the teacher transcribes the train and validation audio, or its own transcripts are taken.

accelerate launch data_prep/pseudo_label.py recipes/demo/recipe.yaml
"""

import eval.startup  # noqa: F401

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from tqdm import tqdm

from data_prep.label_sets import copy_label_set
from data_prep.label_store import Decoding, Label, finished_parts, is_merged, merge_parts, read_labels, write_part
from data_prep.memory import batch_size
from data_prep.references import reference_labels
from data_prep.teacher import Heard, Teacher
from eval.audio import SAMPLE_RATE, AudioError, read_audio
from eval.memory import out_of_memory
from eval.utterances import Utterance, read_utterances
from recipes.errors import UserError, run_main
from recipes.models import model_folder
from recipes.schema import Recipe
from recipes.sections import Labels
from recipes.stage import Work, arguments, open_stage, write_json

AHEAD = 2
"""Batches decoded from disk while the teacher works on another."""


def main() -> None:
    """Sort by length, divide among the processes, transcribe what is missing, merge."""
    recipe, command = arguments("labels")
    if (section := recipe.labels) is None:
        raise UserError("labels: the recipe has no labels section; add `labels: {}` for its defaults")
    processes = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    main_process = processes.is_main_process
    with open_stage(recipe, "labels", command, main=main_process, wait=processes.wait_for_everyone) as work:
        utterances = read_utterances(recipe.root / "corpus", "train", "validation")
        if section.source is not None:
            if main_process:
                copy_label_set(section.source, utterances, work.folder)
        elif section.text != "teacher":
            if main_process:
                write_part(work.folder, 0, reference_labels(recipe, utterances))
                merge_parts(work.folder, len(utterances), section.shard_rows)
        else:
            if not is_merged(work.folder, len(utterances)):
                label_all(recipe, section, work, utterances, processes)
            processes.wait_for_everyone()
            if main_process:
                merge_parts(work.folder, len(utterances), section.shard_rows)
        if main_process:
            labels = read_labels(work.folder)
            rate = _speed(work.folder, processes.num_processes)
            work.finish(
                counts=counts(labels),
                metrics=summary(labels, work.folder)
                | {"audio_seconds_per_second": rate, "processes": processes.num_processes},
            )


def label_all(
    recipe: Recipe, section: Labels, work: Work, utterances: Sequence[Utterance], processes: PartialState
) -> None:
    """Every utterance into a part file, each by one of the processes."""
    # 1. The teacher, one copy a process.
    folder = model_folder(recipe.teacher.model)
    teacher = Teacher(folder, recipe.teacher, section, processes.device)
    _fits(utterances, teacher.format.window_samples / SAMPLE_RATE)
    # 2. Batches of like length; the longest first, so that memory trouble shows at once.
    size = _agreed_size(work, section, teacher, processes)
    batches = length_sorted(utterances, size)
    # 3. Of what is missing, process i takes every Nth batch.
    done = finished_parts(work.folder)
    processes.wait_for_everyone()
    missing = [number for number in range(len(batches)) if number not in done]
    mine = missing[processes.process_index :: processes.num_processes]
    bar = tqdm(mine, "labels", unit="batch", disable=not processes.is_main_process)
    started = time.perf_counter()
    with (work.folder / f"speed-{processes.process_index}.txt").open("a") as speed:
        for number, (batch, clips) in zip(bar, read_ahead([batches[number] for number in mine]), strict=True):
            write_part(work.folder, number, label_batch(teacher, batch, clips), section.temperature)
            started, before = time.perf_counter(), started
            speed.write(f"{sum(item.seconds for item in batch)} {started - before}\n")
    processes.wait_for_everyone()


def length_sorted(utterances: Sequence[Utterance], size: int) -> list[list[Utterance]]:
    """Batches of utterances of like length, longest first; ties in corpus order."""
    ordered = sorted(utterances, key=lambda item: -item.seconds)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def label_batch(teacher: Teacher, batch: Sequence[Utterance], clips: Sequence[np.ndarray | str]) -> list[Label]:
    """Labels of a batch; a clip that could not be read is named in its label. Out of memory, halves are tried."""
    good = {index: clip for index, clip in enumerate(clips) if not isinstance(clip, str)}
    heard: list[Heard] = []
    try:
        if good:
            names, languages = [batch[index].id for index in good], [batch[index].language for index in good]
            heard = teacher(list(good.values()), names, languages)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error) or len(batch) == 1:
            raise
    if len(heard) < len(good):  # out of memory; tried again here, where the failed pass holds nothing any more
        torch.cuda.empty_cache()
        half = len(batch) // 2
        tqdm.write(f"labels: out of memory with {len(batch)} clips, going on with {half}")
        return label_batch(teacher, batch[:half], clips[:half]) + label_batch(teacher, batch[half:], clips[half:])
    labels = [_label(item, str(clip)) for item, clip in zip(batch, clips, strict=True)]
    for index, result in zip(good, heard, strict=True):
        labels[index] = replace(
            labels[index], language=result.language, plain=result.plain, timed=result.timed,
            no_speech_prob=result.no_speech_prob, error=None,
        )  # fmt: skip
    return labels


def _label(item: Utterance, error: str) -> Label:
    nothing = Decoding("", [], 0, 0.0, 0.0, ended=False)
    return Label(
        id=item.id, source=item.source, split=item.split, audio=item.audio, seconds=item.seconds, parts=item.parts,
        part_seconds=item.part_seconds, speaker=item.speaker, language=item.language, reference=item.text,
        plain=nothing, error=error,
    )  # fmt: skip


def _fits(utterances: Sequence[Utterance], window: float) -> None:
    longest = max(utterances, key=lambda item: item.seconds, default=None)
    if longest is not None and longest.seconds > window:
        raise UserError(
            f"labels: {longest.id} is {longest.seconds:.1f} s long, beyond the teacher's window of {window:g} s; "
            f"set corpus.max_seconds={window:g} to split such recordings at silences"
        )


def _agreed_size(work: Work, section: Labels, teacher: Teacher, processes: PartialState) -> int:
    """The batch size, the same for all processes and for a run that goes on."""
    plan = work.folder / "plan.json"
    if processes.is_main_process and not plan.is_file():
        write_json(plan, {"batch_size": section.batch_size if section.batch_size != "auto" else batch_size(teacher)})
    processes.wait_for_everyone()
    return int(json.loads(plan.read_text())["batch_size"])


def read_ahead(batches: Sequence[Sequence[Utterance]]) -> Iterator[tuple[Sequence[Utterance], list[np.ndarray | str]]]:
    """Each batch with its samples, decoded in other threads while the teacher works; a reason where that fails."""
    with ThreadPoolExecutor(AHEAD) as pool:
        queue: list[tuple[Sequence[Utterance], Future[list[np.ndarray | str]]]] = []
        rest = iter(batches)
        for batch in islice(rest, AHEAD):
            queue.append((batch, pool.submit(_read, batch)))
        while queue:
            batch, clips = queue.pop(0)
            for following in islice(rest, 1):
                queue.append((following, pool.submit(_read, following)))
            yield batch, clips.result()


def _read(batch: Sequence[Utterance]) -> list[np.ndarray | str]:
    clips: list[np.ndarray | str] = []
    for item in batch:
        try:
            clips.append(read_audio(item.audio))
        except AudioError as error:
            clips.append(str(error))
    return clips


def _speed(folder: Path, processes: int) -> float | None:
    """Seconds of audio a second over all processes and tries, without start-up; the notes are removed."""
    lines = [line.split() for file in folder.glob("speed-*.txt") for line in file.read_text().splitlines()]
    for file in folder.glob("speed-*.txt"):
        file.unlink()
    audio, seconds = (sum(float(line[column]) for line in lines if len(line) == 2) for column in (0, 1))
    return round(processes * audio / seconds, 1) if seconds else None


def counts(labels: Sequence[Label]) -> dict[str, int]:
    """How many there are, and how many could not be made."""
    return {
        "utterances": len(labels),
        "errors": sum(label.error is not None for label in labels),
        "sampled": sum(label.plain.temperature > 0 for label in labels),
    }


def summary(labels: Sequence[Label], folder: Path) -> dict[str, Any]:
    """What the report says of the labels."""
    hours = sum(label.seconds for label in labels) / 3600
    size = sum(file.stat().st_size for file in folder.glob("labels-*.parquet"))
    return {
        "audio_hours": round(hours, 4),
        "mean_logprob": statistics.fmean(label.plain.mean_logprob for label in labels) if labels else None,
        "store_mb_per_hour": round(size / 1e6 / hours, 3) if hours else None,
    }


if __name__ == "__main__":
    run_main(main)
