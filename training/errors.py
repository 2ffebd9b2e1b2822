"""The one error that reaches a user as a single line."""


class InputError(ValueError):
    """Bad input: the message names the field or file and says how to mend it.

    The command line prints it as one line and exits with code 2; anything else that escapes is a bug.
    """
