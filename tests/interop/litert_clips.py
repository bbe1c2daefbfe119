"""Transcribe clips with LiteRT. A checkpoint without tflite/ is exported first, in this environment with the converter.

    litert_clips.py CHECKPOINT --precision int8 a.wav b.wav        one JSON line per clip

LiteRT has no speech pipeline of its own; `eval.runtimes.tflite_runtime` runs its graphs.
"""

import argparse
import json
import tempfile
from pathlib import Path

from distill.exporters.export_source import ExportSource
from distill.exporters.exporter_registry import EXPORTERS
from distill.exporters.folder_layout import write_layout
from eval.audio.recordings import read_audio
from eval.decoding.transcriber import Transcriber
from eval.runtimes.registry import open_runtime, weight_files
from eval.runtimes.torch_runtime import load_model

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint", type=Path)
parser.add_argument("--precision")
parser.add_argument("clips", nargs="+")
args = parser.parse_args()
with tempfile.TemporaryDirectory() as folder:
    model = args.checkpoint
    if not weight_files("tflite", model, args.precision):
        model = Path(folder)
        write_layout(args.checkpoint, model)
        EXPORTERS["tflite"](ExportSource(load_model(args.checkpoint), args.checkpoint, []), model, [args.precision])
    transcriber = Transcriber(open_runtime("tflite", model, args.precision, threads=1), model, "en")
    for clip in args.clips:
        (transcript,) = transcriber.transcribe([read_audio(clip)])
        print(json.dumps({"audio": clip, "text": transcript.text}), flush=True)
