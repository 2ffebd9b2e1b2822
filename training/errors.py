"""Errors that a user sees as one line."""


class InputError(ValueError):
    """Bad input: the message names the field or file and says how to fix it.

    The command line prints it as one line and exits with code 2; anything else that escapes is a bug.
    """


class Stopped(Exception):  # noqa: N818 - not an error: the run was asked to stop, and can be resumed
    """The run was interrupted and saved; the message says at which step and how to resume."""


def first_line(error: BaseException, longest: int = 120) -> str:
    """The first line of another library's error, cut to `longest` characters; its type where it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0][:longest] if lines else type(error).__name__
