"""`uni-dpo compare`: the model before and after training, side by side."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from uni_dpo.cli.terminal import print_tables


class Dtype(StrEnum):
    """Of a model's weights; `auto` is the checkpoint's own."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def compare(
    prompts: Annotated[Path, typer.Argument(help="A table of questions, as `predict` reads them.")],
    trained: Annotated[str, typer.Option(help="What training wrote: a LoRA adapter or a whole model.")],
    output: Annotated[Path, typer.Option(help="Folder for comparison.json and comparison.html.")],
    original: Annotated[str | None, typer.Option(help="The model before training; an adapter names its own.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Where image paths start; none may leave it.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt of rows without a `system` of their own.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Share of the probability that tokens are drawn from.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Fixes what is drawn.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 8,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights; auto is the checkpoint's own.")] = Dtype.AUTO,
    device: Annotated[str, typer.Option(help="auto takes the GPU if there is one.")] = "auto",
) -> None:
    """Let the original and the trained model answer the same prompts; print and write the answers side by side."""
    from uni_dpo.data.tables.writing import write_rows
    from uni_dpo.inference.compare import Models, read_prompts
    from uni_dpo.inference.compare import compare as answer
    from uni_dpo.inference.compare_page import changed, page, table
    from uni_dpo.models.backends import Sampling
    from uni_dpo.storage.writing import check_writable, write_text

    for name in ("comparison.json", "comparison.html"):
        check_writable(output / name)
    found = read_prompts(prompts, image_root=image_root, extracted=output / "images")
    asked = [replace(prompt, system=prompt.system or system) for prompt in found]
    models = Models.find(trained, original)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    rows = answer(
        asked, models, output / "answers", sampling, seed=seed, batch_size=batch_size, dtype=dtype.value, device=device
    )
    write_rows(output / "comparison.json", rows)
    write_text(output / "comparison.html", page(rows, f"{models.original} before and after {trained}"))
    print_tables([table(rows)])
    print(f"{changed(rows):,} of {len(rows):,} answers differ; written to {output}")
