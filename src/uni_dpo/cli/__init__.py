"""`uni-dpo …`: each module here parses one group of commands, calls the library, prints; no logic."""

import errno
import os
import sys

from uni_dpo.errors import UniDPOError

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
"""Errors of the system that say that a file can't be read or written, and of which the program is not the cause."""


def main() -> None:
    """Run the command line; a fault of the input is one message and exit status 1, never a traceback."""
    from uni_dpo.cli.app import app

    try:
        app()
    except UniDPOError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        sys.exit(f"error: {error.filename or 'a file'}: {os.strerror(error.errno)}")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
