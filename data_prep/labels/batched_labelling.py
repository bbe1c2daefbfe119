"""How many clips the teacher can take at once."""

from typing import TYPE_CHECKING

import psutil
import torch

if TYPE_CHECKING:
    from data_prep.labels.labelling_teacher import LabellingTeacher
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from accelerate import PartialState
from tqdm import tqdm

from data_prep.labels.label_store import (
    Decoding,
    Label,
)
from data_prep.labels.labelling_teacher import LabellingTeacher, TeacherOutput
from eval.audio.recordings import AudioError, read_audio
from eval.audio.utterances import Utterance
from eval.runtimes.process_memory import out_of_memory
from recipes.core.atomic_files import write_json
from recipes.core.errors import UserError
from recipes.engine.stage_folder import StageFolder
from recipes.schema.labels_section import LabelsSection

SHARE = 0.7
"""Of free memory that a batch may fill; the rest is for fragments, decoded audio and other processes."""

LARGEST = 256
"""Clips; beyond it nothing is gained: the arithmetic units are full."""


def teacher_batch_size(teacher: "LabellingTeacher") -> int:
    """Clips whose encoder pass, caches and logits fit in free memory, a power of two from 1 to 256."""
    free = _free(teacher.device) * SHARE
    size = LARGEST
    while size > 1 and size * bytes_per_clip(teacher) > free:
        size //= 2
    return size


def bytes_per_clip(teacher: "LabellingTeacher") -> float:
    """Peak bytes a clip: the larger of the encoder's activations and the decoder's caches with its logits."""
    config, weight = teacher.model.config, teacher.model.dtype.itemsize
    width, positions = config.d_model, config.max_source_positions
    # The first convolution keeps two frames a position; one layer holds input, norm, q, k, v, output and the MLP.
    encoder = positions * weight * max(4 * width, 6 * width + 2 * config.encoder_ffn_dim)
    caches = 2 * config.decoder_layers * width * weight * (positions + teacher.format.max_length)
    logits = 4 * 4 * config.vocab_size  # float32: raw, allowed, and two of the top-k and its tail
    return float(max(encoder, caches + logits) + positions * width * weight + 4 * teacher.format.window_samples)


def _free(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available)


AHEAD = 2
"""Batches decoded from disk while the teacher works on another."""


def length_sorted(utterances: Sequence[Utterance], size: int) -> list[list[Utterance]]:
    """Batches of utterances of like length, longest first; ties in corpus order."""
    ordered = sorted(utterances, key=lambda item: -item.seconds)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def label_batch(
    teacher: LabellingTeacher, batch: Sequence[Utterance], clips: Sequence[np.ndarray | str]
) -> list[Label]:
    """Labels of a batch; a clip that could not be read is named in its label. Out of memory, halves are tried."""
    good = {index: clip for index, clip in enumerate(clips) if not isinstance(clip, str)}
    heard: list[TeacherOutput] = []
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


def _agreed_size(work: StageFolder, section: LabelsSection, teacher: LabellingTeacher, processes: PartialState) -> int:
    """The batch size, the same for all processes and for a run that goes on."""
    plan = work.folder / "plan.json"
    if processes.is_main_process and not plan.is_file():
        write_json(
            plan, {"batch_size": section.batch_size if section.batch_size != "auto" else teacher_batch_size(teacher)}
        )
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
