"""LiteRT over a checkpoint: exported here, where the converter is installed, and run without torch's help.

    litert_clips.py CHECKPOINT --precision int8 a.wav b.wav        {"audio": ..., "text": ...} a line

LiteRT has no speech pipeline of its own; the host is `eval.runtimes.tflite`.
"""

import argparse
import json
import tempfile
from pathlib import Path

from distill.export import EXPORTERS, Student
from distill.export.layout import write_layout
from eval.audio import read_audio
from eval.runtimes import open_runtime
from eval.runtimes.torch import load_model
from eval.runtimes.transcriber import Transcriber

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint", type=Path)
parser.add_argument("--precision")
parser.add_argument("clips", nargs="+")
given = parser.parse_args()
with tempfile.TemporaryDirectory() as folder:
    write_layout(given.checkpoint, Path(folder))
    EXPORTERS["tflite"](Student(load_model(given.checkpoint), given.checkpoint, []), Path(folder), [given.precision])
    transcriber = Transcriber(open_runtime("tflite", Path(folder), given.precision, threads=1), Path(folder), "en")
    for clip in given.clips:
        (said,) = transcriber.transcribe([read_audio(clip)])
        print(json.dumps({"audio": clip, "text": said.text}), flush=True)
