"""Log messages: to stderr as they are, and to a file with time and level while a stage runs.

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
"""The project's logger. Other packages' loggers are left as they are."""


class _StderrHandler(logging.Handler):
    """Write messages to stderr without breaking a progress bar that is on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        # tqdm.write clears the bar, writes the line and draws the bar again; without a bar it only writes.
        tqdm.write(self.format(record), file=sys.stderr)


def configure_logging() -> None:
    """Send `log`'s messages of level INFO and above to stderr; a second call changes nothing."""
    log.setLevel(logging.DEBUG)
    log.propagate = False
    if not any(isinstance(handler, _StderrHandler) for handler in log.handlers):
        handler = _StderrHandler(logging.INFO)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Append every message, debug messages and tracebacks included, to `path` while the body runs."""
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
