"""`uni-dpo …`: each module here parses one group of commands, calls the library, prints; no logic."""

from uni_dpo.cli.entry import run


def main() -> None:
    """Run the command line; see `uni_dpo.cli.entry.run`."""

    def command() -> None:
        from uni_dpo.cli.app import app

        app()

    run(command)
