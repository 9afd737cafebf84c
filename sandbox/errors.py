"""The one exception that the sandbox raises at its users."""


class SandboxError(Exception):
    """The sandbox cannot do what was asked. The text says what was wrong, what was expected and what to do.

    A program that fails is never an exception: it has a verdict.
    """
