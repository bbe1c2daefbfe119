"""Transcribe with OpenVINO GenAI, in an environment of its own. It loads an exported folder without changes.

.interop/genai/bin/python tests/interop/genai.py RUN/export/model/openvino-int8 CLIP.flac ...

Prints one JSON line per clip, {"audio": ..., "text": ...}. Clips are 16 kHz mono.
"""

import argparse
import json

import openvino_genai
import soundfile


def main() -> None:
    """Print the text of each file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", help="folder with openvino_encoder_model.xml, such as export/model/openvino-int8")
    parser.add_argument("audio", nargs="+")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--precision", choices=["f32", "bf16", "f16"], help="default: chosen by OpenVINO for the CPU")
    args = parser.parse_args()
    properties = {"INFERENCE_PRECISION_HINT": args.precision} if args.precision else {}
    pipeline = openvino_genai.WhisperPipeline(args.model, "CPU", **properties)
    for audio in args.audio:
        samples, _ = soundfile.read(audio, dtype="float32")
        result = pipeline.generate(samples.tolist(), num_beams=args.beams)
        print(json.dumps({"audio": audio, "text": result.texts[0].strip()}), flush=True)


if __name__ == "__main__":
    main()
