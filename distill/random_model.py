"""Write a model with a Whisper shape, random weights and a real vocabulary, to measure sizes and latencies.

python -m distill.random_model tiny VOCABULARY_FOLDER OUTPUT_FOLDER
"""

import argparse
from pathlib import Path

from distill.models.random_weights import random_model
from recipes.core.errors import run_main
from recipes.core.whisper_shape import WHISPER_SHAPES


def main() -> None:
    """Parse the arguments and write the model folder."""
    parser = argparse.ArgumentParser(prog="python -m distill.random_model", description=__doc__.split("\n", 1)[0])
    parser.add_argument("shape", choices=WHISPER_SHAPES, help="Whisper size")
    parser.add_argument("vocabulary", type=Path, help="folder with tokenizer, feature extractor and generation config")
    parser.add_argument("output", type=Path, help="model folder to write")
    args = parser.parse_args()
    random_model(WHISPER_SHAPES[args.shape], args.vocabulary, args.output)


if __name__ == "__main__":
    run_main(main)
