"""Errors that end a command with a one-line message and a fixed exit status."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from recipes.core.logs import configure_logging, log
from recipes.core.machine import end_with_parent


class CommandError(Exception):
    """Base class of the errors below. The message is one line; `status` is the exit status of the command."""

    status = 1


class UserError(CommandError):
    """The user can correct this. The message says what, where, expected, found and what to do. Exit status 2."""

    status = 2


class RunError(CommandError):
    """The run itself failed, for example parity beyond tolerance or too many unusable files. Exit status 1."""

    status = 1


class BudgetMissed(CommandError):
    """No artefact keeps a required device budget. Exit status 3."""

    status = 3


def one_line(error: BaseException) -> str:
    """Return the message of `error` as a single line."""
    return " ".join(str(error).split())


def exit_status(error: BaseException) -> int:
    """Return the exit status of a command that ends with `error`: 1 unless it is a `CommandError`."""
    return error.status if isinstance(error, CommandError) else 1


MESSAGE_FILE_VARIABLE = "SOTTOVOCE_MESSAGES"
"""Environment variable with the path of a file to which a failing stage process writes its error for its parent."""


def run_main(main: Callable[[], None]) -> None:
    """Run `main`. A `CommandError` becomes one line on stderr and an exit status; other errors keep their traceback."""
    configure_logging()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # torch's launcher starts each process in a session of its own: a SIGKILL that ends the launcher would leave
        # them running, holding the stage's lock.
        end_with_parent()
    try:
        main()
    except CommandError as error:
        log.error(f"error: {one_line(error)}")
        _write_message_file(error)
        sys.exit(error.status)
    except Exception as error:
        _write_message_file(error)
        raise
    except KeyboardInterrupt:
        log.error("interrupted; run the same command again to continue")
        sys.exit(130)


def _write_message_file(error: Exception) -> None:
    """Write the message and the exit status to the message file, unless another process has done so.

    When a stage runs several processes, the first one to fail is the cause: the others fail because it has gone.
    """
    if file := os.environ.get(MESSAGE_FILE_VARIABLE):
        message = one_line(error) if isinstance(error, CommandError) else f"{type(error).__name__}: {one_line(error)}"
        with suppress(OSError), Path(file).open("x") as stream:
            json.dump({"message": message, "status": exit_status(error)}, stream)
