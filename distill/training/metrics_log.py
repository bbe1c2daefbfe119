"""Training figures by step: a line each in `metrics.jsonl`, and accelerate's trackers such as TensorBoard."""

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator


class MetricsLog:
    """Writes the figures of each step from the main process.

    Args:
        folder: Folder of `metrics.jsonl`.
        accelerator: Knows the main process and has the trackers.
    """

    def __init__(self, folder: Path, accelerator: Accelerator):
        self._file, self._accelerator = folder / "metrics.jsonl", accelerator

    def start_after(self, step: int) -> None:
        """Remove what an interrupted run logged after `step`, its last checkpoint, and start the trackers there."""
        if self._accelerator.is_main_process:
            lines = self._file.read_text().splitlines(keepends=True) if self._file.is_file() else []
            # A killed run may leave an incomplete last line.
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            self._file.write_text("".join(kept))
        self._accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": step + 1}})

    def write(self, step: int, **values: Any) -> None:
        """Log the values of a step."""
        self._accelerator.log(values, step=step)
        if self._accelerator.is_main_process:
            with self._file.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        """Close the trackers."""
        self._accelerator.end_training()
