"""TODO: distill.random_model."""

import argparse
from pathlib import Path

from distill.models.random_weights import random_model
from recipes.core.errors import run_main
from recipes.core.whisper_shape import WHISPER_SHAPES


def main() -> None:
    """Shape, vocabulary, folder."""
    parser = argparse.ArgumentParser(prog="python -m distill.random_model", description=__doc__.split("\n", 1)[0])
    parser.add_argument("shape", choices=WHISPER_SHAPES)
    parser.add_argument("vocabulary", type=Path, help="folder with tokenizer, feature extractor and generation config")
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    random_model(WHISPER_SHAPES[given.shape], given.vocabulary, given.output)


if __name__ == "__main__":
    run_main(main)
