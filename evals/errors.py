"""One way to tell a user about a mistake: raise `UserError`; the command prints it and exits with 2."""

import difflib
import functools
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

AGAIN = "start the same command again"
"""what a full disk asks for; a training run says how to go on instead"""


class UserError(Exception):
    """Something the user can put right. The text says what was wrong, what was expected and what to do."""


EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "a text (a number is one in two kinds of quotes: \"'5'\")",
    "tuple": "numbers with a comma between them",
    "dict": "keys below it (KEY.NAME=VALUE)",
    "model": "keys below it (KEY.NAME=VALUE)",
}
"""what pydantic's kinds of errors begin with, and what was expected"""


def explained(error: Mapping[str, Any]) -> str:
    """One of a pydantic ValidationError's errors: what was expected, what was there, what may have been meant."""
    kind, value, message = error["type"], error["input"], str(error["msg"]).removeprefix("Value error, ")
    if not message.startswith("Input should"):  # a validator's own words
        shown = isinstance(value, Mapping) or hasattr(value, "model_fields") or str(value) in message
        return message if shown else f"{message} (got {value!r})"
    known = re.findall(r"'([^']*)'", message) if kind == "literal_error" else []
    wanted = ", ".join(known) or EXPECTED.get(kind.partition("_")[0], message.removeprefix("Input should be "))
    return f"expected {wanted}, not {value!r}.{did_you_mean(value, known)}"


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """The question for a name that is one of the known but for case, signs or a slip; else nothing."""
    plain = {re.sub(r"[\W_]", "", name.lower()): name for name in known}
    near = difflib.get_close_matches(re.sub(r"[\W_]", "", str(value).lower()), plain, 1, 0.6)
    return f" Did you mean {plain[near[0]]!r}?" if near else ""


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
