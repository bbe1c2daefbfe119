"""LiteRT over a checkpoint: run without torch's help; exported here, where the converter is, if it holds no tflite/.

    litert_clips.py CHECKPOINT --precision int8 a.wav b.wav        {"audio": ..., "text": ...} a line

LiteRT has no speech pipeline of its own; the host is `eval.runtimes.tflite_runtime`.
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
given = parser.parse_args()
with tempfile.TemporaryDirectory() as folder:
    model = given.checkpoint
    if not weight_files("tflite", model, given.precision):
        model = Path(folder)
        write_layout(given.checkpoint, model)
        EXPORTERS["tflite"](ExportSource(load_model(given.checkpoint), given.checkpoint, []), model, [given.precision])
    transcriber = Transcriber(open_runtime("tflite", model, given.precision, threads=1), model, "en")
    for clip in given.clips:
        (said,) = transcriber.transcribe([read_audio(clip)])
        print(json.dumps({"audio": clip, "text": said.text}), flush=True)
