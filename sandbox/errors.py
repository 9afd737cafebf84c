"""The one exception that the sandbox raises at its users, and how its commands say so."""

import functools
import sys
from collections.abc import Callable, Sequence


class SandboxError(Exception):
    """The sandbox cannot do what was asked. The text says what was wrong, what was expected and what to do.

    A program that fails is never an exception: it has a verdict.
    """


def command(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """Wrap a command's main(): a SandboxError is one line and exit code 2, Ctrl-C is 130."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except SandboxError as e:
            print(f"error: {e}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130

    return wrapped
