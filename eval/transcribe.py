"""`sottovoce transcribe MODEL AUDIO...`: text of audio files with any runtime; as text, JSON or subtitles."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.audio import SAMPLE_RATE, AudioError, read_audio
from eval.long_form import Mode, transcribe_long
from eval.runtimes import RUNTIMES, open_runtime
from eval.runtimes.transcriber import Transcriber
from eval.subtitles import Cue, subtitles
from recipes.errors import RunError, UserError, run_main


def main() -> None:
    """Transcribe each file; unreadable ones are named, the others still done."""
    given = _arguments()
    if not given.model.is_dir():
        raise UserError(f"model {given.model}: expected a model folder, found none; such as runs/demo/export/model")
    runtime = given.runtime or ("onnx" if (given.model / "onnx").is_dir() else "torch")
    opened = open_runtime(runtime, given.model, given.precision, given.threads)
    detect = given.language == "detect"
    transcriber = Transcriber(opened, given.model, _any_language(given.model) if detect else given.language, given.task)
    failed = 0
    for path in given.audio:
        try:
            clip = read_audio(path)
        except AudioError as error:
            failed += 1
            print(f"{path}: {error}", file=sys.stderr)
            continue
        seconds = len(clip) / SAMPLE_RATE
        row = transcribe(transcriber, clip, seconds, given, detect=detect)
        _show(path, {"audio": str(path), "seconds": round(seconds, 3), **row}, given)
    if failed:
        raise RunError(f"{failed} of {len(given.audio)} files could not be read")


def transcribe(
    transcriber: Transcriber, clip: Any, seconds: float, given: argparse.Namespace, *, detect: bool
) -> dict[str, Any]:
    """One clip's text, score and, where asked for, language and segments."""
    mel_BFT, row = transcriber.features([clip]), dict[str, Any]()
    if detect:
        ((language, no_speech),) = transcriber.listen(mel_BFT)
        row = {"language": language, "no_speech_prob": round(no_speech, 4)}
        if language is not None:
            transcriber.format = replace(transcriber.format, prompt=transcriber.format.prompt_in(language))
    timed = given.timestamps or given.format in ("srt", "vtt")
    if len(clip) > transcriber.format.window_samples:
        return row | transcribe_recording(transcriber, clip, given, timed=timed)
    (said,) = transcriber.decode(mel_BFT, scores=True, timestamps=timed, previous=given.previous)
    row |= {"text": said.text, "mean_logprob": round(said.mean_logprob, 4)}
    if timed:
        row["segments"] = _segments(transcriber.segments(said, seconds))
    return row


def transcribe_recording(
    transcriber: Transcriber, samples: np.ndarray, given: argparse.Namespace, *, timed: bool
) -> dict[str, Any]:
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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sottovoce transcribe", description="Text of audio files.")
    parser.add_argument("model", type=Path, help="model folder, such as runs/demo/export/model")
    parser.add_argument("audio", nargs="+", type=Path, help="audio files of any length")
    parser.add_argument("--runtime", choices=RUNTIMES, help="default: onnx where the folder has it")
    parser.add_argument("--precision", choices=["fp32", "fp16", "int8"], default="fp32")
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
