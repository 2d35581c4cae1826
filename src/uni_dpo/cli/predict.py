"""`uni-dpo predict`: answer a file of questions, with accuracy where it has labels."""

from pathlib import Path
from typing import Annotated, Any

import typer


def predict(
    source: Annotated[Path, typer.Argument(help="Rows of `question`, `images`, and maybe `id` and `answer`.")],
    output: Annotated[Path, typer.Argument(help="A .json, .jsonl or .parquet file.")],
    model: Annotated[str, typer.Option(help="Folder or hub name of a checkpoint, or its name on the server.")],
    backend: Annotated[str, typer.Option(help="transformers, vllm or openai.")] = "transformers",
    base_url: Annotated[str | None, typer.Option(help="Of the server, for backend openai; ends in /v1.")] = None,
    grader: Annotated[str, typer.Option(help="exact, numeric, multiple_choice, or package.module:function.")] = "exact",
    system: Annotated[str | None, typer.Option(help="System prompt; without it what the chat template does.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    image_root: Annotated[Path | None, typer.Option(help="Where image paths start; none may leave it.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N questions by id.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 64,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
) -> None:
    """Write every question with its answer and label. A stopped run resumes."""
    from uni_dpo.inference.predict import predict_file
    from uni_dpo.models.backends import Sampling

    entry: dict[str, Any] = {"backend": backend, "model": model}
    entry |= {"base_url": base_url} if base_url else {}
    entry |= {"batch_size": batch_size} if backend == "transformers" else {}
    report = predict_file(
        source,
        output,
        entry,
        sampling=Sampling(temperature=temperature, max_tokens=max_tokens),
        grader=grader,
        image_root=str(image_root) if image_root else None,
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        system=system,
    )
    for line in report.lines():
        print(line)
