"""`uni-dpo overlay …`: our files in a checkout of LlamaFactory or VLMEvalKit."""

from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from uni_dpo import overlay
from uni_dpo.overlay import Change, detect
from uni_dpo.overlay.checkout import Checkout
from uni_dpo.overlay.manifest import FOLDER

app = typer.Typer(
    help="Put Uni-DPO into a checkout of LlamaFactory or VLMEvalKit, check first, or take it out.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(metavar="PATH", help="Top folder of the checkout.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files of the overlay that somebody changed.")]


@app.command()
def check(path: Folder) -> None:
    """Show what `apply` would do; write nothing."""
    _print(overlay.check(_introduced(path)))


@app.command()
def apply(path: Folder, force: Force = False) -> None:
    """Add our files and our dataset entry; what they replace is kept for `revert`."""
    changes = overlay.apply(_introduced(path), force=force)
    _print(changes)
    print("applied" if any(change.is_due for change in changes) else "nothing to do")


@app.command()
def revert(path: Folder, force: Force = False) -> None:
    """Leave the checkout as it was before `apply`, whatever its version is now."""
    if not (path / FOLDER).is_dir():
        detect(path)  # says where it is no checkout at all
    print(f"reverted: {len(overlay.revert(path, force=force))} files removed or restored")


def _introduced(path: Path) -> Checkout:
    checkout = detect(path)
    print(checkout, *(f"note: {remark}" for remark in checkout.remarks()), sep="\n")
    return checkout


def _print(changes: list[Change]) -> None:
    by_state = sorted(changes, key=lambda change: change.state)
    for state, group in groupby(by_state, key=lambda change: change.state):
        alike = list(group)
        print(f"{state}: {len(alike)} files")
        for change in alike:
            if change.is_due:
                print(f"  {change.place}")
