"""`uni-dpo score`: rate pairs or answers with a trained reward model."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Dtype(StrEnum):
    """How weights are held."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def score(
    source: Annotated[Path, typer.Argument(help="Pairs, or questions with answers; see docs/vision_alignment.md.")],
    output: Annotated[Path, typer.Argument(help="A .json, .jsonl or .parquet file.")],
    model: Annotated[Path, typer.Option(help="The output_dir of a `stage: rm` run, or a sequence classifier.")],
    template: Annotated[str | None, typer.Option(help="LlamaFactory's template, as in the training.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Rate this column's answers.")] = None,
    media_dir: Annotated[
        Path | None, typer.Option("--image-root", "--media-dir", help="Where image paths start; none may leave it.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers in one forward pass.")] = 8,
    image_max_pixels: Annotated[int, typer.Option(help="LlamaFactory's limit, as in the training.")] = 768 * 768,
    image_min_pixels: Annotated[int, typer.Option(help="LlamaFactory's limit, as in the training.")] = 32 * 32,
    dtype: Annotated[Dtype, typer.Option(help="How the weights are held.")] = Dtype.AUTO,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.")
    ] = False,
) -> None:
    """Write score_chosen and score_rejected (or score). A stopped run resumes."""
    from uni_dpo.inference.score import score_file
    from uni_dpo.models.rewards import RewardModelOptions

    options = RewardModelOptions(model, template, image_max_pixels, image_min_pixels, dtype.value, trust_remote_code)
    report = score_file(
        source, output, options, answer_column=answer_column, media_dir=media_dir, batch_size=batch_size
    )
    for line in report.lines():
        print(line)
