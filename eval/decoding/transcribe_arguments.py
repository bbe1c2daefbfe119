"""The command line of `sottovoce transcribe`."""

import argparse
import os
from pathlib import Path

from eval.runtimes.registry import RUNTIMES


def _positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"expected more than 0, found {text}")
    return value


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return value


def arguments() -> argparse.Namespace:
    """As typed; exits with the reason where that cannot be read."""
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
        "--words", action="store_true",
        help="words with their times, as lines, JSON or a cue each; by --runtime torch, of a model whose "
        "generation_config.json has alignment_heads",
    )  # fmt: skip
    parser.add_argument(
        "--long", choices=["sequential", "chunked"],
        help="how files longer than the model's window are read: by its timestamps (default where it has them), or in "
        "overlapping windows",
    )  # fmt: skip
    parser.add_argument("--carry", action="store_true", help="sequential: tell each window the text before it")
    parser.add_argument("--previous", default="", help="text that came before, or names to spell that way")
    return parser.parse_args()
