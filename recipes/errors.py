"""What a run can end in, and the one line the user sees."""

import sys
from collections.abc import Callable


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


def run_main(main: Callable[[], None]) -> None:
    """Run a command's `main`; turn the errors above into one line on stderr and their exit status."""
    try:
        main()
    except (UserError, RunError, BudgetMissed) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        print("interrupted; run again to go on from here", file=sys.stderr)
        sys.exit(130)
