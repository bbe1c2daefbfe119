"""Labelling speed of the engine beside a plain loop, on real audio with a true-size window.

    python -m tests.bench.label SPEECH VOCABULARY        one JSON line

The plain loop is what a script does: batches in corpus order through the feature extractor and `generate`. Both hold
the same whisper-tiny with random weights, the same batch size, processes and threads. So that it writes as much as a
real model would, the teacher ends each text after TOKENS_PER_SECOND tokens for a second of sound, by hooks in the model
itself, which neither side knows of.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from data_prep.audio.segmentation import pack_utterances
from data_prep.labels.batched_labelling import label_batch, length_sorted, read_ahead
from data_prep.labels.labelling_teacher import LabellingTeacher
from data_prep.sources.discovery import find_recordings
from distill.models.random_weights import random_model
from eval.audio.recordings import AudioReference, duration_of, read_audio
from eval.audio.utterances import Utterance
from eval.runtimes.torch_runtime import load_model
from recipes.core.whisper_shape import WHISPER_SHAPES
from recipes.schema.corpus_section import AudioSource, CorpusSection
from recipes.schema.labels_section import LabelsSection
from recipes.schema.teacher_section import TeacherSection as Section

TOKENS_PER_SECOND = 3.5
"""Of English speech in Whisper's vocabulary."""
BATCH = 16


def natural_length(model: WhisperForConditionalGeneration) -> None:
    """Make a random model end its texts in proportion to the sound in its window."""
    told: dict[str, torch.Tensor] = {}
    decoder, end = model.model.decoder, int(model.generation_config.eos_token_id)

    def after_encoder(_module: Any, inputs: Any, given: dict[str, Any], output: Any) -> None:
        mel_BFT = inputs[0] if inputs else given["input_features"]
        loud_BT = mel_BFT.amax(dim=1) > mel_BFT.amin(dim=(1, 2))[:, None] + 1e-3
        # The states carry the length to the decoder, whichever rows an engine keeps.
        output.last_hidden_state[:, 0, 0] = (loud_BT.sum(dim=1) * TOKENS_PER_SECOND / 100).round()

    def before_decoder(_module: Any, _inputs: Any, given: dict[str, Any]) -> None:
        past = given["past_key_values"]
        made = given["input_ids"].shape[1] + (past.get_seq_length() if past is not None else 0) - 4
        told["over"] = given["encoder_hidden_states"][:, 0, 0] <= made

    def after_head(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        logits[..., end] = torch.where(told["over"], 1e4, -1e4)[:, None]
        return logits

    model.model.encoder.register_forward_hook(after_encoder, with_kwargs=True)
    decoder.register_forward_pre_hook(before_decoder, with_kwargs=True)
    model.proj_out.register_forward_hook(after_head)


def plain(model: WhisperForConditionalGeneration, folder: Path, utterances: list[Utterance]) -> int:
    """Corpus order, one step after the other; tokens written."""
    extract = WhisperFeatureExtractor.from_pretrained(folder)
    written = 0
    for start in range(0, len(utterances), BATCH):
        clips = [read_audio(item.audio) for item in utterances[start : start + BATCH]]
        features = extract(clips, sampling_rate=16_000, return_tensors="pt").input_features
        tokens = model.generate(features, language="en", task="transcribe", return_timestamps=False)
        written += int((tokens != model.generation_config.eos_token_id).sum())
    return written


def engine(teacher: LabellingTeacher, utterances: list[Utterance]) -> int:
    """As the labels stage runs it; tokens written."""
    batches = length_sorted(utterances, BATCH)
    labels = [label for batch, clips in read_ahead(batches) for label in label_batch(teacher, batch, clips)]
    return sum(len(label.plain.tokens) - label.plain.prompt_length - 1 for label in labels)


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """Seconds and tokens."""
    started = time.perf_counter()
    return (lambda tokens: (time.perf_counter() - started, tokens))(work())


def corpus(speech: Path, sets: dict[str, int]) -> list[Utterance]:
    """The first utterances of each test set, in corpus order."""
    items = []
    for name, count in sets.items():
        source = AudioSource(audiofolder=speech / name)
        rows = [
            row for row in find_recordings(source, CorpusSection(sources=[source]), Path(), 0) if row.split == "test"
        ]
        for row in rows[:count]:
            seconds = duration_of(AudioReference.parse(row.audio))
            items.append(Utterance(
                id=row.name, source=name, split="train", audio=[row.audio], parts=[row.name], text=row.text,
                speaker=row.speaker, language=None, seconds=seconds, part_seconds=[seconds], sha256="",
            ))  # fmt: skip
    return items


def main() -> None:
    """Each engine warmed up on one batch, then all of the corpus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--sets", type=json.loads, default={"an4": 64, "librispeech-mini": 32})
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    utterances = corpus(given.speech, given.sets)
    audio = sum(item.seconds for item in utterances)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        random_model(WHISPER_SHAPES["tiny"], given.vocabulary, folder)
        model = load_model(folder)
        natural_length(model)
        teacher = LabellingTeacher(folder, Section(model=str(folder)), LabelsSection(fallback=[]), torch.device("cpu"))
        teacher.model = model
        packed = pack_utterances(utterances, 30.0)
        for work in (lambda: plain(model, folder, utterances[:4]), lambda: engine(teacher, utterances[:4])):
            work()
        reference, reference_tokens = timed(lambda: plain(model, folder, utterances))
        alone, alone_tokens = timed(lambda: engine(teacher, utterances))
        joined, joined_tokens = timed(lambda: engine(teacher, packed))
    print(json.dumps({
        "bench": "label", "ratio": round(reference / joined, 2), "ratio_unpacked": round(reference / alone, 2),
        "plain_audio_s_per_s": round(audio / reference, 2), "engine_audio_s_per_s": round(audio / joined, 2),
        "unpacked_audio_s_per_s": round(audio / alone, 2), "utterances": len(utterances), "windows": len(packed),
        "audio_s": round(audio, 1), "median_s": round(float(np.median([item.seconds for item in utterances])), 2),
        "tokens": [reference_tokens, alone_tokens, joined_tokens], "batch_size": BATCH,
        "threads": torch.get_num_threads(), "shape": "whisper-tiny, 30 s window, random weights",
    }))  # fmt: skip


if __name__ == "__main__":
    main()
