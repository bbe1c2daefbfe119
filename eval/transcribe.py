"""`sottovoce transcribe MODEL AUDIO...`: text of audio files with any runtime; as text, JSON or subtitles."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.audio import AUDIO_SUFFIXES, SAMPLE_RATE, AudioError, read_audio
from eval.batches import Row, within_memory, work
from eval.long_form import Mode, transcribe_long
from eval.runtimes import RUNTIMES, choose, open_runtime
from eval.runtimes.transcriber import Runtime, Transcriber, Transcript
from eval.subtitles import Cue, subtitles
from recipes.errors import RunError, UserError, run_main


def main() -> None:
    """Transcribe each file; unreadable ones are named, the others still done."""
    given = _arguments()
    if given.draft is not None:
        _check_draft(given)
    given.runtime, given.precision = choose(given.model, given.runtime, given.precision)
    paths = audio_files(given.audio)
    if given.work is not None:  # as the process that `within_memory` starts
        start, most = given.work
        transcriber = _open(given)
        work(paths, given.memory_mb, start, most, lambda clips: transcribe(transcriber, clips, given))
        _tell_acceptance(transcriber)
        return
    again = [sys.executable, "-m", "eval.transcribe", *sys.argv[1:], "--work"]
    rows = within_memory(again, len(paths), given.memory_mb) if given.memory_mb else _one_by_one(paths, given)
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
        from eval.speculative import open_speculative  # torch

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
    timed = given.timestamps or given.format in ("srt", "vtt")
    rows: dict[int, Row] = {}
    short = [index for index, clip in enumerate(clips) if len(clip) <= transcriber.format.window_samples]
    if short:
        mel_BFT = transcriber.features([clips[index] for index in short])
        said = transcriber.decode(mel_BFT, scores=True, timestamps=timed, previous=given.previous)
        for index, one in zip(short, said, strict=True):
            rows[index] = _clip(transcriber, len(clips[index]), one, timed=timed)
    for index in set(range(len(clips))) - set(short):
        rows[index] = _recording(transcriber, clips[index], given, timed=timed)
    return [{"seconds": round(len(clip) / SAMPLE_RATE, 3), **heard, **rows[index]} for index, clip in enumerate(clips)]


def _clip(transcriber: Transcriber, samples: int, said: Transcript, *, timed: bool) -> Row:
    row: Row = {"text": said.text, "mean_logprob": round(said.mean_logprob, 4)}
    return row | ({"segments": _segments(transcriber.segments(said, samples / SAMPLE_RATE))} if timed else {})


def _recording(transcriber: Transcriber, samples: np.ndarray, given: argparse.Namespace, *, timed: bool) -> Row:
    """Text and, where asked for, segments of what is longer than the model's window."""
    mode: Mode = given.long or ("sequential" if transcriber.writes_timestamps or timed else "chunked")
    if timed and mode == "chunked":
        raise UserError("--long chunked: gives no times, which --timestamps and subtitles need; take sequential")
    said = transcribe_long(transcriber, samples, mode, carry=given.carry, previous=given.previous)
    return {"text": said.text} | ({"segments": _segments(said.cues)} if timed else {})


def _segments(cues: Sequence[Cue]) -> list[dict[str, Any]]:
    return [{"start": start, "end": end, "text": text} for start, end, text in cues]


def _show(path: Path, row: dict[str, Any], given: argparse.Namespace) -> None:
    if given.format in ("srt", "vtt"):
        file = path.with_suffix(f".{given.format}") if given.out is None else given.out / f"{path.stem}.{given.format}"
        cues = [(item["start"], item["end"], item["text"]) for item in row["segments"]]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(subtitles(cues, given.format), encoding="utf-8")
        print(file, flush=True)
    elif given.format == "json":
        print(json.dumps(row, ensure_ascii=False), flush=True)
    else:
        lines = [f"[{item['start']:.2f} - {item['end']:.2f}] {item['text']}" for item in row.get("segments", [])]
        print("\n".join(lines) if given.timestamps else row["text"], flush=True)


def _any_language(model: Path) -> str | None:
    """Some language of the model: the prompt needs one before the audio has been heard."""
    file = model / "generation_config.json"
    known = (json.loads(file.read_text()) if file.is_file() else {}).get("lang_to_id") or {}
    return next((name.strip("<|>") for name in known), None)


def _positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"expected more than 0, found {text}")
    return value


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return value


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sottovoce transcribe", description="Text of audio files.")
    parser.add_argument("model", type=Path, help="model folder, such as runs/demo/export/model")
    parser.add_argument("audio", nargs="+", type=Path, help="audio files of any length, or folders of them")
    parser.add_argument(
        "--runtime", choices=RUNTIMES,
        help=f"default: the first of {', '.join(RUNTIMES[1:])} that the folder has in the precision asked for, then "
        "torch, which starts slowest",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=["fp32", "fp16", "int8", "w8a8", "w4a16"],
        help="default: the most exact one that the folder has for the runtime",
    )  # fmt: skip
    parser.add_argument(
        "--memory-mb", type=_positive, metavar="N",
        help="keep the process below so many MB (10^6 bytes) of resident memory, and transcribe in batches as large as "
        "that allows; int8 scales a whole batch at once, so its texts may differ from those of single files",
    )  # fmt: skip
    parser.add_argument(
        "--draft", type=Path, metavar="STUDENT",
        help="folder of a student of this model, which drafts what the model then checks: the same text, sooner where "
        "the student is much the faster; counts go to stderr",
    )  # fmt: skip
    parser.add_argument(
        "--draft-tokens", type=_count, metavar="N", help="drafted at once; default: while the student is sure enough"
    )
    parser.add_argument("--work", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--language", default="en", help="language code, or `detect`; for multilingual models")
    parser.add_argument("--task", choices=["transcribe", "translate"], default="transcribe")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--format", choices=["text", "json", "srt", "vtt"], default="text")
    parser.add_argument("--out", type=Path, help="folder for subtitles; default: beside the audio")
    parser.add_argument("--timestamps", action="store_true", help="segments with their times, as text or JSON")
    parser.add_argument(
        "--long", choices=["sequential", "chunked"],
        help="how files longer than the model's window are read: by its timestamps (default where it has them), or in "
        "overlapping windows",
    )  # fmt: skip
    parser.add_argument("--carry", action="store_true", help="sequential: tell each window the text before it")
    parser.add_argument("--previous", default="", help="text that came before, or names to spell that way")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
