"""Transcribe with OpenVINO GenAI, in an environment of its own: proof that it loads an exported folder as it is.

.interop/genai/bin/python tests/interop/genai.py RUN/export/model/openvino-int8 CLIP.flac ...

Prints one JSON line a clip: {"audio": ..., "text": ...}. Clips are 16 kHz and mono.
"""

import argparse
import json

import openvino_genai
import soundfile


def main() -> None:
    """Print what it hears in each file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", help="folder with openvino_encoder_model.xml and its companions")
    parser.add_argument("audio", nargs="+")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--precision", choices=["f32", "bf16", "f16"], help="default: what the CPU prefers")
    given = parser.parse_args()
    properties = {"INFERENCE_PRECISION_HINT": given.precision} if given.precision else {}
    pipeline = openvino_genai.WhisperPipeline(given.model, "CPU", **properties)
    for audio in given.audio:
        samples, _ = soundfile.read(audio, dtype="float32")
        result = pipeline.generate(samples.tolist(), num_beams=given.beams)
        print(json.dumps({"audio": audio, "text": result.texts[0].strip()}), flush=True)


if __name__ == "__main__":
    main()
