"""Compare the compression methods, each alone and healed with the same settings: WER before and after, size, latency.

    python -m tests.bench.heal SPEECH [--recipe RECIPE] [--runs FOLDER] [KEY=VALUE ...]        one JSON line

For each method, the recipe's stages up to `heal` are run with the method as the `compress` section; `half` is the
recipe's own section. A second call continues a run that was interrupted, and only measures what is finished. Further
overrides are those of the recipe, such as `heal.steps=300`, or `student.init=teacher student.decoder_layers=4` to
compress the teacher itself. Corpus, labels and quality report are taken from the run given as --like. All models are
scored on AN4's test split. Differences are paired; `healed` is the difference of the healed to the unhealed model.
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
from tests.bench.compress import compare_models, read_clips, wer_interval

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
"""`compress` section by name. The alnum models have 4 encoder layers with 3 or more heads each, 768 neurons, and a
window of 7 s."""


def run_method(recipe: Path, name: str, runs: Path, like: Path, overrides: list[str]) -> Path:
    """Run a method up to the stage `heal`, as far as it is not finished, and return the folder of its run."""
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
    """Run the methods that are missing, then score and time all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/alnum-compressed/recipe.yaml"))
    parser.add_argument("--like", type=Path, default=Path("runs/alnum-real"), help="run with the corpus and the labels")
    parser.add_argument("--runs", type=Path, default=Path("runs/healed"), help="folder of the methods' runs")
    parser.add_argument("--methods", default=",".join(METHODS), help="methods to compare, separated by commas")
    parser.add_argument("--only-run", action="store_true", help="run the stages, but measure nothing")
    parser.add_argument("--times", type=int, default=50, help="timed runs of each encoder")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_intermixed_args()
    methods = args.methods.split(",")
    if unknown := [name for name in methods if name not in METHODS]:
        parser.error(f"--methods: expected some of {', '.join(METHODS)}, found {unknown[0]}")
    torch.set_num_threads(1)
    roots = {name: run_method(args.recipe, name, args.runs, args.like, args.overrides) for name in methods}
    if args.only_run:
        return
    first = next(iter(roots.values()))
    folders = {"original": first / "student" / "model"}
    for name, root in roots.items():
        folders |= {name: root / "compress" / "model", f"{name}, healed": root / "heal" / "model"}
    models = {name: load_model(folder) for name, folder in folders.items()}
    train, test = read_clips(args.speech / "an4" / "train"), read_clips(args.speech / "an4" / "test")
    # Healed models are not timed: healing changes the weights only, not the shape.
    rows, errors = compare_models(models, folders, train, test, runs=args.times, threads=1, timed=["original", *roots])
    for name in roots:
        rows[f"{name}, healed"]["healed"] = wer_interval(errors[f"{name}, healed"], errors[name])
    print(json.dumps({
        "bench": "heal", "recipe": str(args.recipe), "overrides": args.overrides, "methods": METHODS, "rows": rows,
        "test_clips": len(test), "words": int(errors["original"].units.sum()), "threads": 1, "runs": args.times,
        "wer_is": "value, low and high of the 95 % interval",
    }))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
