"""`sottovoce transcribe MODEL AUDIO...`: text of audio files with any runtime, a line each or JSON."""

import argparse
import json
import os
import sys
from pathlib import Path

from eval.audio import SAMPLE_RATE, AudioError, read_audio
from eval.runtimes import RUNTIMES, open_runtime
from eval.runtimes.transcriber import Transcriber
from recipes.errors import RunError, UserError, run_main


def main() -> None:
    """Transcribe each file; unreadable ones are named, the others still done."""
    parser = argparse.ArgumentParser(prog="sottovoce transcribe", description="Text of audio files.")
    parser.add_argument("model", type=Path, help="model folder, such as runs/demo/export/model")
    parser.add_argument("audio", nargs="+", type=Path, help="audio files up to the model's window")
    parser.add_argument("--runtime", choices=RUNTIMES, help="default: onnx where the folder has it")
    parser.add_argument("--precision", choices=["fp32", "fp16", "int8"], default="fp32")
    parser.add_argument("--language", default="en", help="language code, for multilingual models")
    parser.add_argument("--task", choices=["transcribe", "translate"], default="transcribe")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    given = parser.parse_args()
    if not given.model.is_dir():
        raise UserError(f"model {given.model}: expected a model folder, found none; such as runs/demo/export/model")
    runtime = given.runtime or ("onnx" if (given.model / "onnx").is_dir() else "torch")
    transcriber = Transcriber(
        open_runtime(runtime, given.model, given.precision, given.threads),
        given.model,
        given.language,
        given.task,
    )
    window_s = transcriber.format.window_samples / SAMPLE_RATE
    failed = 0
    for path in given.audio:
        try:
            clip = read_audio(path)
        except AudioError as error:
            failed += 1
            print(f"{path}: {error}", file=sys.stderr)
            continue
        seconds = len(clip) / SAMPLE_RATE
        if seconds > window_s:
            print(f"{path}: {seconds:.1f} s, only the first {window_s:.0f} s are transcribed", file=sys.stderr)
        (transcript,) = transcriber.transcribe([clip], scores=True)
        row = {"audio": str(path), "seconds": round(seconds, 3), "text": transcript.text,
               "mean_logprob": round(transcript.mean_logprob, 4)}  # fmt: skip
        print(json.dumps(row, ensure_ascii=False) if given.json else transcript.text, flush=True)
    if failed:
        raise RunError(f"{failed} of {len(given.audio)} files could not be read")


if __name__ == "__main__":
    run_main(main)
