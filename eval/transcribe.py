"""`sottovoce transcribe MODEL AUDIO...`: text of audio files with any runtime; as text, JSON or subtitles."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from eval.audio.recordings import AUDIO_SUFFIXES, SAMPLE_RATE, AudioError, read_audio
from eval.decoding.long_form import Mode, transcribe_long
from eval.decoding.memory_batches import Row, run_worker, transcribe_within_memory
from eval.decoding.subtitles import Cue, format_subtitles
from eval.decoding.transcribe_arguments import arguments
from eval.decoding.transcriber import Transcriber, Transcript
from eval.runtimes.interface import Runtime
from eval.runtimes.registry import choose_artefact, open_runtime
from recipes.core.errors import RunError, UserError, run_main

if TYPE_CHECKING:
    from eval.decoding.word_times import WordTimer


def main() -> None:
    """Transcribe each file; unreadable ones are named, the others still done."""
    given = arguments()
    if given.draft is not None:
        _check_draft(given)
    if given.words and given.runtime is None:
        given.runtime = "torch"  # an export's graphs hold no attention weights
    given.runtime, given.precision = choose_artefact(given.model, given.runtime, given.precision)
    paths = audio_files(given.audio)
    if given.work is not None:  # as the process that `within_memory` starts
        start, most = given.work
        transcriber = _open(given)
        run_worker(paths, given.memory_mb, start, most, lambda clips: transcribe(transcriber, clips, given))
        _tell_acceptance(transcriber)
        return
    again = [sys.executable, "-m", "eval.transcribe", *sys.argv[1:], "--work"]
    rows = (
        transcribe_within_memory(again, len(paths), given.memory_mb) if given.memory_mb else _one_by_one(paths, given)
    )
    failed = 0
    bar = tqdm(rows, "transcribe", len(paths), unit="file", disable=len(paths) == 1)
    for path, row in zip(paths, bar, strict=True):
        if "error" in row:
            failed += 1
            tqdm.write(f"{path}: {row['error']}", file=sys.stderr)
        else:
            _show(path, {"audio": str(path), **row}, given)
    if failed:
        raise RunError(f"{failed} of {len(paths)} files could not be read")


def audio_files(given: Sequence[Path]) -> list[Path]:
    """The files as given; of a folder the audio under it, in order of name. UserError for a folder without any."""
    found: list[Path] = []
    for path in given:
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
        if path.is_dir() and not inside:
            raise UserError(f"audio {path}: expected audio files in this folder, found none; name another")
        found += inside if path.is_dir() else [path]
    return found


def _one_by_one(paths: Sequence[Path], given: argparse.Namespace) -> Iterator[Row]:
    transcriber = _open(given)
    for path in paths:
        try:
            clip = read_audio(path)
        except AudioError as error:
            yield {"error": str(error)}
        else:
            yield from transcribe(transcriber, [clip], given)
    _tell_acceptance(transcriber)


def _open(given: argparse.Namespace) -> Transcriber:
    if given.draft is not None:
        from eval.decoding.speculative import open_speculative  # torch

        opened: Runtime = open_speculative(given.model, given.draft, given.threads, given.draft_tokens)
    else:
        opened = open_runtime(given.runtime, given.model, given.precision, given.threads)
    language = _any_language(given.model) if given.language == "detect" else given.language
    return Transcriber(opened, given.model, language, given.task)


def _check_draft(given: argparse.Namespace) -> None:
    """Drafts are for PyTorch and text without times: another choice is refused, and none is made so."""
    if given.runtime not in (None, "torch") or given.timestamps or given.format in ("srt", "vtt"):
        raise UserError("--draft: works in --runtime torch and without timestamps or subtitles; leave one of them out")
    if given.long == "sequential":
        raise UserError("--draft: --long sequential goes by timestamps, which drafts leave out; take chunked")
    given.runtime, given.long = "torch", "chunked"


def _tell_acceptance(transcriber: Transcriber) -> None:
    """What became of the drafts, where there were some."""
    if (kept := getattr(transcriber.runtime, "acceptance", None)) is not None:
        print(f"draft: {json.dumps(kept.figures)}", file=sys.stderr)


def transcribe(transcriber: Transcriber, clips: Sequence[np.ndarray], given: argparse.Namespace) -> list[Row]:
    """Length, text, score and, where asked for, language and segments of clips [N] at 16 kHz, as one batch.

    Where the language is detected each is a batch of its own, since their prompts differ.
    """
    detect = given.language == "detect"
    if detect and len(clips) > 1:
        return [row for clip in clips for row in transcribe(transcriber, [clip], given)]
    if not clips:
        return []
    heard: Row = {}
    if detect:
        ((language, no_speech),) = transcriber.listen(transcriber.features(clips))
        heard = {"language": language, "no_speech_prob": round(no_speech, 4)}
        if language is not None:
            transcriber.format = replace(transcriber.format, prompt=transcriber.format.prompt_in(language))
    timed, timer = _timed(given), _word_timer(transcriber, given)
    rows: dict[int, Row] = {}
    short = [index for index, clip in enumerate(clips) if len(clip) <= transcriber.format.window_samples]
    if short:
        mel_BFT = transcriber.features([clips[index] for index in short])
        said = transcriber.decode(mel_BFT, scores=True, timestamps=timed, previous=given.previous)
        for index, one in zip(short, said, strict=True):
            rows[index] = _clip(transcriber, clips[index], one, timer, timed=timed)
    for index in set(range(len(clips))) - set(short):
        rows[index] = _recording(transcriber, clips[index], given, timer, timed=timed)
    return [{"seconds": round(len(clip) / SAMPLE_RATE, 3), **heard, **rows[index]} for index, clip in enumerate(clips)]


def _timed(given: argparse.Namespace) -> bool:
    """Whether segments are asked for: subtitles are made of them, or of words."""
    return given.timestamps or (given.format in ("srt", "vtt") and not given.words)


def _word_timer(transcriber: Transcriber, given: argparse.Namespace) -> "WordTimer | None":
    if not given.words:
        return None
    from eval.decoding.word_times import WordTimer  # torch

    return WordTimer.of(transcriber, given.model)


def _clip(
    transcriber: Transcriber, samples: np.ndarray, said: Transcript, timer: "WordTimer | None", *, timed: bool
) -> Row:
    row: Row = {"text": said.text, "mean_logprob": round(said.mean_logprob, 4)}
    if timed:
        row["segments"] = _segments(transcriber.segments(said, len(samples) / SAMPLE_RATE))
    return row | ({"words": [asdict(word) for word in timer.words(samples, said.tokens)]} if timer else {})


def _recording(
    transcriber: Transcriber, samples: np.ndarray, given: argparse.Namespace, timer: "WordTimer | None", *, timed: bool
) -> Row:
    """Text and, where asked for, segments and words of what is longer than the model's window."""
    wanted = timed or timer is not None
    mode: Mode = given.long or ("sequential" if transcriber.writes_timestamps or wanted else "chunked")
    if wanted and mode == "chunked":
        raise UserError("recording longer than the window: chunks give no times, which were asked for; take sequential")
    said = transcribe_long(transcriber, samples, mode, carry=given.carry, previous=given.previous)
    row: Row = {"text": said.text} | ({"segments": _segments(said.cues)} if timed else {})
    if timer is not None:
        row["words"] = [
            asdict(word)
            for (start, end), tokens in zip(said.windows, said.tokens, strict=True)
            for word in timer.words(samples[start:end], tokens, start / SAMPLE_RATE)
        ]
    return row


def _segments(cues: Sequence[Cue]) -> list[dict[str, Any]]:
    return [{"start": start, "end": end, "text": text} for start, end, text in cues]


def _show(path: Path, row: dict[str, Any], given: argparse.Namespace) -> None:
    if given.format in ("srt", "vtt"):
        file = path.with_suffix(f".{given.format}") if given.out is None else given.out / f"{path.stem}.{given.format}"
        cues = _cues(row)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(format_subtitles(cues, given.format), encoding="utf-8")
        print(file, flush=True)
    elif given.format == "json":
        print(json.dumps(row, ensure_ascii=False), flush=True)
    else:
        lines = [f"[{start:.2f} - {end:.2f}] {text}" for start, end, text in _cues(row)]
        print("\n".join(lines) if given.timestamps or given.words else row["text"], flush=True)


def _cues(row: Row) -> list[Cue]:
    """Words where there are some, else segments; none where neither was asked for."""
    if "words" in row:
        return [(item["start"], item["end"], item["word"]) for item in row["words"]]
    return [(item["start"], item["end"], item["text"]) for item in row.get("segments", [])]


def _any_language(model: Path) -> str | None:
    """Some language of the model: the prompt needs one before the audio has been heard."""
    file = model / "generation_config.json"
    known = (json.loads(file.read_text()) if file.is_file() else {}).get("lang_to_id") or {}
    return next((name.strip("<|>") for name in known), None)


if __name__ == "__main__":
    run_main(main)
