"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, by name, and what to do about it.

    The command line prints the message without a traceback and exits with status 2.
    """
