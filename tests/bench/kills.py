"""Labelling real speech, killed again and again: the final set beside an uninterrupted run's.

python -m tests.bench.kills SPEECH [--kills 20] [--utterances 300]        one JSON line for each process count
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from tests.conftest import ROOT
from tests.stages.conftest import sottovoce, write_recipe
from tests.stages.test_labels import approximately, folder, kill_while_labelling, same, stored, two_processes


def main() -> None:
    """One uninterrupted run, then one killed run with one process and one with two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--utterances", type=int, default=300)
    given = parser.parse_args()
    overrides = [
        "--until", "labels", "labels.batch_size=4", "labels.top_k=8", "labels.timestamps=true",
        f"corpus.limit={given.utterances}",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        recipes = {}
        for name in ("whole", "one", "two"):
            (Path(place) / name).mkdir()
            recipes[name] = write_recipe(Path(place) / name, given.speech.absolute() / "an4")
        subprocess.run(sottovoce("run", str(recipes["whole"]), *overrides), cwd=ROOT, check=True)
        whole = stored(recipes["whole"])
        for name, launch in (("one", []), ("two", [two_processes(recipes["two"])])):
            command = sottovoce("run", str(recipes[name]), *overrides, *launch)
            stood = kill_while_labelling(command, folder(recipes[name]), given.kills, len(whole) // 4)
            subprocess.run(command, cwd=ROOT, check=True)
            labels = stored(recipes[name])
            print(json.dumps({
                "bench": "kills", "processes": name, "kills": given.kills, "parts_at_each_kill": stood,
                "utterances": len(whole), "distinct_ids": len({label.id for label in labels}),
                "texts_and_tokens_equal": approximately(labels) == approximately(whole),
                "scores_and_logits_equal": same(labels, whole),
            }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
