"""One way to tell a user about a mistake: raise `UserError`; the command prints it and exits with 2."""

import functools
import sys
from collections.abc import Callable

AGAIN = "start the same command again"
"""what a full disk asks for; a training run says how to go on instead"""


class UserError(Exception):
    """Something the user can put right. The text says what was wrong, what was expected and what to do."""


def first_line(error: BaseException) -> str:
    """What an error of a library says first, which may be all that helps."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def told(error: BaseException) -> tuple[str, int] | None:
    """(what to print, exit code) of what a user can put right, Ctrl-C and a full disk; None: a bug, or unexpected."""
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if isinstance(error, KeyboardInterrupt):
        return f"\ninterrupted{': ' + str(error) if str(error) else ''}", 130
    if isinstance(error, OSError) and error.errno == 28:  # ENOSPC
        where = f" while writing {error.filename}" if error.filename else ""
        return f"error: the disk is full{where}. Free some space, then {AGAIN}.", 1
    return None


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a command's main(): what `told` knows is one message and an exit code, all else keeps its traceback."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except (UserError, KeyboardInterrupt, OSError) as e:
            if (said := told(e)) is None:
                raise
            print(said[0], file=sys.stderr)
            return said[1]

    return wrapped
