"""`uni-dpo …`: each module here parses one group of commands, calls the library, prints; no logic."""

import sys

from uni_dpo.errors import UniDPOError


def main() -> None:
    """Run the command line; a fault of the input is one message and exit status 1, never a traceback."""
    from uni_dpo.cli.app import app

    try:
        app()
    except UniDPOError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
