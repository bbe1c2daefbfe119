"""The errors that end a command, their exit statuses, and the one line that the user sees."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from recipes.core.logs import configure_logging, log


class UserError(Exception):
    """Something the user can mend. The message is one line: what, where, expected, found, what to do. Exit 2."""

    status = 2


class RunError(Exception):
    """The run itself failed (parity beyond tolerance, too many broken files). One line; exit 1."""

    status = 1


class BudgetMissed(Exception):
    """A required device budget is not kept. Exit 3."""

    status = 3


def one_line(error: BaseException) -> str:
    """The message of `error` folded to a single line."""
    return " ".join(str(error).split())


MESSAGE_FILE_VARIABLE = "SOTTOVOCE_MESSAGES"
"""Environment variable: a file to which the processes of a stage write what ended them, for whoever started them."""


def run_main(main: Callable[[], None]) -> None:
    """Run a command's `main`; turn the errors above into one line on stderr and their exit status."""
    configure_logging()
    try:
        main()
    except (UserError, RunError, BudgetMissed) as error:
        log.error(f"error: {one_line(error)}")
        _leave_message(error)
        sys.exit(error.status)
    except Exception as error:
        _leave_message(error)
        raise
    except KeyboardInterrupt:
        log.error("interrupted; run the same command again to continue")
        sys.exit(130)


def _leave_message(error: Exception) -> None:
    """The first process to fail is the cause: the others fail for want of it, and find the file there."""
    if file := os.environ.get(MESSAGE_FILE_VARIABLE):
        status = getattr(error, "status", None)
        message = one_line(error) if status else f"{type(error).__name__}: {one_line(error)}"
        with suppress(OSError), Path(file).open("x") as left:
            json.dump({"message": message, "status": status or 1}, left)
