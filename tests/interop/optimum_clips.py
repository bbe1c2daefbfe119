"""Transcribe clips with optimum's ONNX Runtime classes, in an environment of their own; print one JSON line per clip.

    .interop/optimum/bin/python tests/interop/optimum_clips.py MODEL [--dtype fp32|fp16|int8] WAV...

optimum-onnx 0.1 finds the fp32 files by itself. For other precisions it expects two decoder files; the merged decoder
does the work of both, so it is named twice.
"""

import argparse
import json

import soundfile
import torch
from optimum.onnxruntime import ORTModelForSpeechSeq2Seq
from transformers import AutoProcessor

SUFFIX = {"fp32": "", "fp16": "_fp16", "int8": "_quantized"}


def main() -> None:
    """Print the text of each file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="export folder")
    parser.add_argument("audio", nargs="+", help="16 kHz mono")
    parser.add_argument("--dtype", choices=SUFFIX, default="fp32")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = {}
    if suffix := SUFFIX[args.dtype]:
        decoder = f"decoder_model_merged{suffix}.onnx"
        names = {
            "encoder_file_name": f"encoder_model{suffix}.onnx",
            "decoder_file_name": decoder,
            "decoder_with_past_file_name": decoder,
        }
    processor = AutoProcessor.from_pretrained(args.model)
    model = ORTModelForSpeechSeq2Seq.from_pretrained(args.model, subfolder="onnx", **names)
    prompt = {"language": "en", "task": "transcribe"} if model.generation_config.is_multilingual else {}
    for audio in args.audio:
        samples, rate = soundfile.read(audio, dtype="float32")
        features = processor(samples, sampling_rate=rate, return_tensors="pt").input_features
        (tokens,) = model.generate(features, **prompt)
        print(json.dumps({"audio": audio, "text": processor.decode(tokens, skip_special_tokens=True).strip()}))


if __name__ == "__main__":
    main()
