"""`sottovoce transcribe MODEL AUDIO...`: transcribe audio files with any runtime, to text, JSON or subtitles."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.decoding.file_results import FileResult, FileTranscript, UnreadableFile
from eval.decoding.file_transcription import (
    DETECT,
    FileTranscriber,
    TranscriptionOptions,
    check_draft_options,
    find_audio_files,
    open_file_transcriber,
)
from eval.decoding.memory_batches import run_worker, transcribe_within_memory
from eval.decoding.subtitles import format_subtitles
from eval.runtimes.registry import RUNTIMES, choose_artefact
from recipes.core.errors import RunError, run_main
from recipes.core.logs import log
from recipes.core.machine import usable_cores
from recipes.core.progress import track

SUBTITLES = ("srt", "vtt")


def main() -> None:
    """Transcribe each file and print the result. Unreadable files are reported, and fail the command at its end."""
    # 1. Options, the model that the folder holds in the requested runtime and precision, and the files.
    args = parse_arguments()
    options = transcription_options(args)
    runtime, precision = choose_artefact(args.model, requested_runtime(args), args.precision)
    files = find_audio_files(args.audio)

    def open_model() -> FileTranscriber:
        return open_file_transcriber(
            args.model, runtime, precision, args.threads, options, draft=args.draft, draft_tokens=args.draft_tokens
        )

    # 2. Transcripts: in this process, or in workers below a memory cap, of which this process may be one.
    if args.worker is not None:
        model, (start, limit) = open_model(), args.worker
        run_worker(files, args.memory_mb, start, limit, model.transcribe)
        log_draft_summary(model)
        return
    if args.memory_mb:
        worker = [sys.executable, "-m", "eval.transcribe", *sys.argv[1:], "--worker"]
        results = transcribe_within_memory(worker, len(files), args.memory_mb)
    else:
        results = transcribe_here(open_model(), files)
    # 3. Output, as each file is finished.
    unreadable = 0
    results = track(results, "transcribe", len(files), unit="file", disable=len(files) == 1)
    for file, result in zip(files, results, strict=True):
        if isinstance(result, UnreadableFile):
            unreadable += 1
            log.error(f"{file}: {result.reason}")
        elif args.format in SUBTITLES:
            print(write_subtitles(file, result, args.format, args.out), flush=True)
        else:
            print(format_transcript(file, result, args.format, timed=args.timestamps or args.words), flush=True)
    if unreadable:
        raise RunError(f"{unreadable} of {len(files)} files could not be read")


def transcription_options(args: argparse.Namespace) -> TranscriptionOptions:
    """Convert the command line's options; raise UserError if they cannot be combined."""
    subtitles = args.format in SUBTITLES
    if args.draft is not None:
        check_draft_options(args.runtime, args.long, timed=args.timestamps or subtitles)
    return TranscriptionOptions(
        language=args.language,
        task=args.task,
        segments=args.timestamps or (subtitles and not args.words),
        words=args.words,
        long_form="chunked" if args.draft is not None else args.long,
        carry=args.carry,
        previous=args.previous,
    )


def requested_runtime(args: argparse.Namespace) -> str | None:
    """Return the requested runtime; torch if drafts or word times need it, None for any."""
    if args.draft is not None or (args.words and args.runtime is None):
        return "torch"  # exported graphs return no attention weights
    runtime: str | None = args.runtime
    return runtime


def transcribe_here(model: FileTranscriber, files: Sequence[Path]) -> Iterator[FileResult]:
    """Transcribe one file after the other in this process."""
    yield from model.transcribe_files(files)
    log_draft_summary(model)


def log_draft_summary(model: FileTranscriber) -> None:
    """Log how many drafted tokens were accepted, if the model has a draft."""
    if (summary := model.draft_summary) is not None:
        log.info(f"draft: {json.dumps(summary)}")


def write_subtitles(audio: Path, transcript: FileTranscript, form: str, folder: Path | None) -> Path:
    """Write subtitles next to the audio, or to `folder`; return the file."""
    file = (audio.parent if folder is None else folder) / f"{audio.stem}.{form}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(format_subtitles(transcript.cues, "srt" if form == "srt" else "vtt"), encoding="utf-8")
    return file


def format_transcript(audio: Path, transcript: FileTranscript, form: str, *, timed: bool) -> str:
    """Return a transcript as a JSON line or as text; `timed` text has a line for each word or segment."""
    if form == "json":
        return json.dumps({"audio": str(audio), **transcript.to_json()}, ensure_ascii=False)
    if timed:
        return "\n".join(f"[{start:.2f} - {end:.2f}] {text}" for start, end, text in transcript.cues)
    return transcript.text


def parse_arguments() -> argparse.Namespace:
    """Parse the command line; exit with status 2 and the reason if it is invalid."""
    parser = argparse.ArgumentParser(prog="sottovoce transcribe", description="Transcribe audio files.")
    add = parser.add_argument
    add("model", type=Path, help="model folder, such as runs/demo/export/model")
    add("audio", nargs="+", type=Path, help="audio files of any length, or folders of them")
    add("--runtime", choices=RUNTIMES,
        help=f"default: the first of {', '.join(RUNTIMES[1:])} that the folder has in the requested precision, else "
        "torch, which is the slowest to start")  # fmt: skip
    add("--precision", choices=["fp32", "fp16", "int8", "w8a8", "w4a16"],
        help="default: the most exact one that the folder has for the runtime")  # fmt: skip
    add("--memory-mb", type=_positive_number, metavar="N",
        help="cap on the process's resident memory in MB (10^6 bytes); files are transcribed in batches as large as it "
        "allows. int8 scales activations over the whole batch, so its texts may differ from those of single "
        "files")  # fmt: skip
    add("--draft", type=Path, metavar="STUDENT",
        help="folder of a student of this model, which drafts tokens that the model verifies: the same text, faster if "
        "the student is much faster; counts of accepted tokens go to stderr")  # fmt: skip
    add("--draft-tokens", type=_positive_count, metavar="N",
        help="number of tokens to draft at once; default: as many as the student is sure enough of")  # fmt: skip
    add("--worker", nargs=2, type=int, help=argparse.SUPPRESS)
    add("--language", default="en", help=f"language code, or `{DETECT}`; for multilingual models")
    add("--task", choices=["transcribe", "translate"], default="transcribe")
    add("--threads", type=int, default=usable_cores(), help="default: all cores")
    add("--format", choices=["text", "json", *SUBTITLES], default="text")
    add("--out", type=Path, help="folder for subtitles; default: that of the audio file")
    add("--timestamps", action="store_true", help="print segments with their times, as text or JSON")
    add("--words", action="store_true",
        help="print words with their times, as text or JSON, or one subtitle per word; needs --runtime torch and a "
        "model whose generation_config.json has alignment_heads")  # fmt: skip
    add("--long", choices=["sequential", "chunked"],
        help="how to transcribe files longer than the model's window: window after window by its timestamps (default "
        "if the model writes them), or in overlapping windows")  # fmt: skip
    add("--carry", action="store_true", help="with --long sequential: pass the text so far to each window")
    add("--previous", default="", help="text that came before, or names to spell as given")
    return parser.parse_args()


def _positive_number(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"expected more than 0, found {text}")
    return value


def _positive_count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return value


if __name__ == "__main__":
    run_main(main)
