"""Stop a training run on real speech again and again and compare its losses and weights with an uninterrupted run's.

python -m tests.bench.resume SPEECH [--stops 30] [--steps 300]        one JSON line
"""

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

from recipes.core.errors import run_main
from tests.conftest import ROOT
from tests.stages.conftest import sottovoce, write_recipe
from tests.stages.test_labels import folder


def read_losses(metrics: Path) -> list[float]:
    """Return the loss of every logged step."""
    return [row["loss"] for row in map(json.loads, metrics.read_text().splitlines()) if "loss" in row]


def stop_repeatedly(command: list[str], metrics: Path, stops: int, steps: int) -> list[int]:
    """Start the command and stop it, `stops` times, by SIGKILL and SIGTERM in turn; return the steps logged each time.

    Each time a random number of further steps is logged first. Ends early if the command finishes.
    """
    generator, logged = random.Random(0), list[int]()
    for number in range(stops):
        before = logged[-1] if logged else 0
        process = subprocess.Popen(
            command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        target = before + generator.randint(4, max(5, steps // stops))
        while process.poll() is None and (not metrics.is_file() or metrics.read_text().count('"loss"') < target):
            time.sleep(0.01)
        if process.poll() is not None:
            break
        time.sleep(generator.random() * 0.2)
        if number % 2:
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        logged.append(metrics.read_text().count('"loss"') if metrics.is_file() else steps)
    return logged


def main() -> None:
    """Train once without interruption and once with stops, then compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--stops", type=int, default=30)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    options = [
        "--until", "train", "corpus.limit=100", f"train.steps={args.steps}", "train.eval_steps=50",
        "train.save_steps=3", "train.workers=1", "train.ema_decay=0.99", "labels.timestamps=true",
        "train.timestamps=0.5",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        recipes = []
        for name in ("uninterrupted", "stopped"):
            (Path(scratch) / name).mkdir()
            recipes.append(write_recipe(Path(scratch) / name, args.speech.absolute() / "an4"))
        uninterrupted, stopped = (sottovoce("run", str(recipe), *options) for recipe in recipes)
        subprocess.run(uninterrupted, cwd=ROOT, check=True)
        subprocess.run([*stopped, "--until", "student"], cwd=ROOT, check=True)
        metrics = folder(recipes[1], "train.partial") / "metrics.jsonl"
        logged = stop_repeatedly(stopped, metrics, args.stops, args.steps)
        subprocess.run(stopped, cwd=ROOT, check=True)
        expected, found = (load_file(folder(recipe, "train") / "model" / "model.safetensors") for recipe in recipes)
        losses = [read_losses(folder(recipe, "train") / "metrics.jsonl") for recipe in recipes]
    print(json.dumps({
        "bench": "resume", "stops": len(logged), "steps_at_each_stop": logged, "steps": args.steps,
        "first_step_apart": next((step for step, (a, b) in enumerate(zip(*losses, strict=True), 1) if a != b), None),
        "weights_bit_equal": expected.keys() == found.keys()
        and all(expected[name].equal(found[name]) for name in expected),
    }))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
