"""`sottovoce compare RUN RUN...`: compare finished runs with the first of them, and flag regressions.

Accuracy is compared utterance by utterance if both runs scored the same test sets with the same normaliser; a system
has regressed if the 95 % interval of the paired difference is entirely above zero. Machines differ, so latency is
compared as the speed-up over the teacher of the same run. Speed-up, memory and size have regressed if they are worse by
more than 10 %.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from eval.reporting.comparison import compare_runs, comparison_table, open_run
from recipes.core.errors import RunError, UserError, run_main


def main() -> None:
    """Compare the runs and print the table, or its JSON."""
    args = parse_arguments()
    # 1. The reports of the finished runs.
    runs = [open_run(folder) for folder in args.runs]
    # 2. Every system compared with the system of its name in the first run.
    comparison = compare_runs(runs)
    # 3. The result, and with --strict an exit status.
    print(json.dumps(asdict(comparison), indent=2) if args.format == "json" else comparison_table(comparison))
    sys.stdout.flush()
    regressed = [row.system for row in comparison.rows if row.regressions]
    if args.strict and regressed:
        raise RunError(f"{len(regressed)} systems regressed: {', '.join(regressed)}")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Raises UserError for fewer than two runs."""
    parser = argparse.ArgumentParser(prog="sottovoce compare", description="Compare finished runs with the first one.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, such as runs/demo; the first is the baseline")
    parser.add_argument("--format", choices=["text", "json"], default="text")
    parser.add_argument("--strict", action="store_true", help="end with exit status 1 if any system has regressed")
    args = parser.parse_args(argv)
    if len(args.runs) < 2:
        raise UserError(f"runs: expected at least two run folders, found {len(args.runs)}; such as runs/a runs/b")
    return args


if __name__ == "__main__":
    run_main(main)
