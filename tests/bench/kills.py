"""Kill the labels stage again and again on real speech and compare the final labels with those of an uninterrupted run.

python -m tests.bench.kills SPEECH [--kills 20] [--utterances 300]        one JSON line for each process count
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from recipes.core.errors import run_main
from tests.conftest import ROOT
from tests.stages.conftest import sottovoce, write_recipe
from tests.stages.test_labels import folder, kill_while_labelling, same, stored, two_processes, without_scores


def main() -> None:
    """Run once without interruption, then with kills: once with one process and once with two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--utterances", type=int, default=300)
    args = parser.parse_args()
    overrides = [
        "--until", "labels", "labels.batch_size=4", "labels.top_k=8", "labels.timestamps=true",
        f"corpus.limit={args.utterances}",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        recipes = {}
        for name in ("uninterrupted", "one", "two"):
            (Path(scratch) / name).mkdir()
            recipes[name] = write_recipe(Path(scratch) / name, args.speech.absolute() / "an4")
        subprocess.run(sottovoce("run", str(recipes["uninterrupted"]), *overrides), cwd=ROOT, check=True)
        expected = stored(recipes["uninterrupted"])
        for name, launch in (("one", []), ("two", [two_processes(recipes["two"])])):
            command = sottovoce("run", str(recipes[name]), *overrides, *launch)
            parts = kill_while_labelling(command, folder(recipes[name]), args.kills, len(expected) // 4)
            subprocess.run(command, cwd=ROOT, check=True)
            labels = stored(recipes[name])
            print(json.dumps({
                "bench": "kills", "processes": name, "kills": args.kills, "parts_at_each_kill": parts,
                "utterances": len(expected), "distinct_ids": len({label.id for label in labels}),
                "texts_and_tokens_equal": without_scores(labels) == without_scores(expected),
                "scores_and_logits_equal": same(labels, expected),
            }), flush=True)  # fmt: skip


if __name__ == "__main__":
    run_main(main)
