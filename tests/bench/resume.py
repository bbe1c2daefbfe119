"""A training run of real speech, stopped again and again: its weights beside an uninterrupted run's.

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

from tests.conftest import ROOT
from tests.stages.conftest import sottovoce, write_recipe
from tests.stages.test_labels import folder


def losses(metrics: Path) -> list[float]:
    """Of every step that was logged."""
    return [row["loss"] for row in map(json.loads, metrics.read_text().splitlines()) if "loss" in row]


def main() -> None:
    """SIGKILL and SIGTERM by turns, each after a random number of further steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--stops", type=int, default=30)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    options = [
        "--until", "train", "corpus.limit=100", f"train.steps={given.steps}", "train.eval_steps=50",
        "train.save_steps=3", "train.workers=1", "train.ema_decay=0.99", "labels.timestamps=true",
        "train.timestamps=0.5",
    ]  # fmt: skip
    draw, stood = random.Random(0), list[int]()
    with tempfile.TemporaryDirectory() as place:
        recipes = []
        for name in ("whole", "stopped"):
            (Path(place) / name).mkdir()
            recipes.append(write_recipe(Path(place) / name, given.speech.absolute() / "an4"))
        whole, stopped = (sottovoce("run", str(recipe), *options) for recipe in recipes)
        subprocess.run(whole, cwd=ROOT, check=True)
        subprocess.run([*stopped, "--until", "student"], cwd=ROOT, check=True)
        log = folder(recipes[1], "train.partial") / "metrics.jsonl"
        for number in range(given.stops):
            before = stood[-1] if stood else 0
            process = subprocess.Popen(
                stopped, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            wanted = before + draw.randint(4, max(5, given.steps // given.stops))
            while process.poll() is None and (not log.is_file() or log.read_text().count('"loss"') < wanted):
                time.sleep(0.01)
            if process.poll() is not None:
                break
            time.sleep(draw.random() * 0.2)
            if number % 2:
                process.terminate()
            else:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            stood.append(log.read_text().count('"loss"') if log.is_file() else given.steps)
        subprocess.run(stopped, cwd=ROOT, check=True)
        one, other = (load_file(folder(recipe, "train") / "model" / "model.safetensors") for recipe in recipes)
        lines = [
            [
                row["loss"]
                for row in map(json.loads, (folder(recipe, "train") / "metrics.jsonl").open())
                if "loss" in row
            ]
            for recipe in recipes
        ]
    print(json.dumps({
        "bench": "resume", "stops": len(stood), "steps_at_each_stop": stood, "steps": given.steps,
        "first_step_apart": next((step for step, (a, b) in enumerate(zip(*lines, strict=True), 1) if a != b), None),
        "weights_bit_equal": one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
