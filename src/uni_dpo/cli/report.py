"""`uni-dpo report`: the page of trainings, of an engine's work dir, or of a data file."""

from pathlib import Path
from typing import Annotated

import typer

from uni_dpo.errors import UniDPOError


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Output folders of trainings, an engine's work dir, or a file of pairs.", show_default=False
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="The page; by default report.html in the first folder.")] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="Write the model card of the training again, with this evaluation's table.")
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="How many different images the page holds at most.")] = 3_000,
) -> None:
    """Write one page: verdicts, curves, weights and pairs of a training, or of several side by side."""
    from uni_dpo.ledger.columns import record_file
    from uni_dpo.report.card import write_card
    from uni_dpo.report.data import write_data_page
    from uni_dpo.report.run import write_run_page
    from uni_dpo.storage.writing import check_writable

    if evaluation is not None:
        if len(sources) != 1:
            raise UniDPOError("--evaluation: name one training, whose model card is to hold the table")
        print(write_card(sources[0], evaluation))
        return
    if output is not None:
        check_writable(output)
    if len(sources) == 1 and not record_file(sources[0]).is_file():
        print(write_data_page(sources[0], output, images=images))
    else:
        print(write_run_page(sources, output, images=images))
