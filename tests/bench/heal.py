"""Every method of compression alone, healed alike: WER before and after, size and encoder latency.

    python -m tests.bench.heal SPEECH [--recipe RECIPE] [--runs FOLDER] [KEY=VALUE ...]        one JSON line

The recipe's stages up to `heal` are run for each method with its `compress` section in the place of the recipe's own,
`half` being that one; a second call goes on where the first was ended, and measures alone what is there. Other
overrides are the recipe's: `heal.steps=300`, or, to compress the teacher itself, `student.init=teacher
student.decoder_layers=4`. Corpus, labels and quality are those of the run given as --like. All are scored on AN4's test
split; differences are paired, `healed` is that of the healed to the unhealed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import run_main
from recipes.schema.recipe import load_recipe
from tests.bench.compress import clips, interval, table

METHODS = {
    "half": "",
    "acc": "{low_rank: {preset: acc}}",
    "balanced": "{low_rank: {preset: balanced}}",
    "fast": "{low_rank: {preset: fast}}",
    "layers": "{prune: {encoder_layers: 3}}",
    "heads": "{prune: {heads: 2}}",
    "neurons": "{prune: {ffn_width: 384, decoder_ffn_width: 384}}",
    "window": "{window: {seconds: 5}}",
}
"""The alnum models have 4 encoder layers, 3 or more heads in each, 768 neurons and windows of 7 s."""


def healed(recipe: Path, name: str, runs: Path, like: Path, overrides: list[str]) -> Path:
    """The folder of a method's run, finished up to its last stage."""
    options = [f"name={name}", f"runs={runs}", f"labels.source={like / 'labels'}", *overrides]
    if METHODS[name]:
        options += ["compress=null", f"compress={METHODS[name]}"]
    root = load_recipe(recipe, options).root
    for stage in ("corpus", "labels", "quality"):
        if not (root / stage).exists():
            shutil.copytree(like / stage, root / stage, copy_function=os.link)
    command = [sys.executable, "-m", "recipes.engine.cli", "run", str(recipe), "--until", "heal", *options]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return root


def main() -> None:
    """Run what is missing, then score and time all; a row a method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/alnum-compressed/recipe.yaml"))
    parser.add_argument("--like", type=Path, default=Path("runs/alnum-real"), help="run whose corpus and labels serve")
    parser.add_argument("--runs", type=Path, default=Path("runs/healed"), help="where the methods' runs go")
    parser.add_argument("--methods", default=",".join(METHODS), help="some of them, with commas between")
    parser.add_argument("--only-run", action="store_true", help="train and measure nothing yet")
    parser.add_argument("--times", type=int, default=50, help="runs of each encoder")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    methods = given.methods.split(",")
    if unknown := [name for name in methods if name not in METHODS]:
        parser.error(f"--methods: expected some of {', '.join(METHODS)}, found {unknown[0]}")
    torch.set_num_threads(1)
    roots = {name: healed(given.recipe, name, given.runs, given.like, given.overrides) for name in methods}
    if given.only_run:
        return
    first = next(iter(roots.values()))
    folders = {"original": first / "student" / "model"}
    for name, root in roots.items():
        folders |= {name: root / "compress" / "model", f"{name}, healed": root / "heal" / "model"}
    models = {name: load_model(folder) for name, folder in folders.items()}
    train, test = clips(given.speech / "an4" / "train"), clips(given.speech / "an4" / "test")
    # Healing changes values alone.
    rows, errors = table(models, folders, train, test, runs=given.times, threads=1, timed=["original", *roots])
    for name in roots:
        rows[f"{name}, healed"]["healed"] = interval(errors[f"{name}, healed"], errors[name])
    print(json.dumps({
        "bench": "heal", "recipe": str(given.recipe), "overrides": given.overrides, "methods": METHODS, "rows": rows,
        "test_clips": len(test), "words": int(errors["original"].units.sum()), "threads": 1, "runs": given.times,
        "wer_is": "value, low and high of the 95 % interval",
    }))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
