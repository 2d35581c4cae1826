"""The one exception that stands for a fault of the user's input."""


class UniDPOError(ValueError):
    """Something the user can mend: its message says what, where, and how.

    Entry points print the message without a traceback and exit with status 1. Anything else that
    escapes is a bug and keeps its traceback.
    """
