"""One way to tell a user about a mistake: raise `UserError`; the command prints it and exits with 2."""

import functools
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can put right. The text says what was wrong, what was expected and what to do."""


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a command's main(): user mistakes exit with 2 and one message, Ctrl-C with 130, a full disk with 1.

    Anything else is a bug of ours and keeps its traceback.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except UserError as e:
            print(f"error: {e}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as e:
            print(f"\ninterrupted{': ' + str(e) if str(e) else ''}", file=sys.stderr)
            return 130
        except OSError as e:
            if e.errno != 28:  # ENOSPC; other I/O errors are unexpected here and keep their traceback
                raise
            where = f" while writing {e.filename}" if e.filename else ""
            print(
                f"error: the disk is full{where}. Free some space, then start the same command again.", file=sys.stderr
            )
            return 1

    return wrapped
