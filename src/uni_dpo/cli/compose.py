"""`uni-dpo compose`: a vision encoder and a language model as one LLaVA checkpoint."""

from pathlib import Path
from typing import Annotated

import typer


def compose(
    output: Annotated[Path, typer.Argument(help="A new folder.")],
    vision: Annotated[str, typer.Option(help="Folder or hub name of a CLIP or SigLIP model.")],
    language: Annotated[str, typer.Option(help="Folder or hub name of a causal language model.")],
    dtype: Annotated[str, typer.Option(help="Of the weights; auto is the language model's.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the new projector's weights.")] = 0,
) -> None:
    """Put a vision encoder and a language model together; train the new projector first."""
    from uni_dpo.models.compose import compose as run

    for line in run(vision, language, output, dtype=dtype, seed=seed).lines():
        print(line)
