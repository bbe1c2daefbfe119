"""A player whose seconds are known: takes its turns without work and writes down that it took them."""

import json
import sys
from pathlib import Path


def main() -> None:
    """Answer every clip's number with the task's seconds; who played which clip goes into the task's file."""
    task = json.loads(sys.stdin.readline())
    print("ready", flush=True)
    for line in sys.stdin:
        with Path(task["played"]).open("a") as played:
            played.write(f"{task['name']}{int(line)} ")
        print(task["seconds"], flush=True)


if __name__ == "__main__":
    main()
