"""Logging: messages go to stderr as plain text and, while a stage runs, to a log file with time and level.

Every module logs through `log`. A command prints its *result* on stdout and logs everything else, so that the output of
`sottovoce transcribe ... > text.txt` holds the text alone.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger("sottovoce")
"""The logger of this project. The loggers of other packages are not changed."""


class _StderrHandler(logging.Handler):
    """Write messages to stderr without breaking a progress bar that is on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        # tqdm.write clears the bar, writes the line and draws the bar again; without a bar it only writes.
        tqdm.write(self.format(record), file=sys.stderr)


def configure_logging() -> None:
    """Send messages of `log` at level INFO and above to stderr. Calling it again has no effect."""
    log.setLevel(logging.DEBUG)
    log.propagate = False
    if not any(isinstance(handler, _StderrHandler) for handler in log.handlers):
        handler = _StderrHandler(logging.INFO)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Append all messages of `log`, with debug messages and the traceback of an error, to `path` during the body."""
    configure_logging()
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    except BaseException as error:
        log.debug("ended by %s", type(error).__name__, exc_info=error)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
