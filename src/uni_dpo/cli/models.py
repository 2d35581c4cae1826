"""`uni-dpo predict`, `score`, `compare`, `compose`: what asks models, and what makes one."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from uni_dpo.cli.entry import print_tables
from uni_dpo.inference.settings import CompareSettings, PredictSettings, ScoreSettings


def compare(settings: CompareSettings) -> None:
    """Write and print the answers of both models side by side."""
    from uni_dpo.data.tables.writing import write_rows
    from uni_dpo.inference.compare import Models, changed, page, read_prompts, table, training_facts
    from uni_dpo.inference.compare import compare as answer
    from uni_dpo.models.backends import Sampling
    from uni_dpo.storage.writing import check_writable, write_text

    output = settings.output
    for name in ("comparison.json", "comparison.html"):
        check_writable(output / name)
    found = read_prompts(settings.prompts, image_root=settings.image_root, extracted=output / "images")
    models = Models.find(settings.trained, settings.original)
    facts = training_facts(settings.trained, settings.pairs)
    rows = answer(
        [replace(prompt, system=prompt.system or settings.system) for prompt in found],
        models,
        output / "answers",
        Sampling(max_tokens=settings.max_tokens, temperature=settings.temperature, top_p=settings.top_p),
        seed=settings.seed,
        batch_size=settings.batch_size,
        dtype=settings.dtype,
        device=settings.device,
    )
    write_rows(output / "comparison.json", rows)
    write_text(output / "comparison.html", page(rows, f"{models.original} before and after {settings.trained}", facts))
    print_tables([table(rows)])
    for fact in facts:
        print(fact)
    print(f"{changed(rows):,} of {len(rows):,} answers differ; written to {output}")


def predict(settings: PredictSettings) -> None:
    """Write every question with its answer, and print the report."""
    from uni_dpo.inference.predict import predict_file
    from uni_dpo.models.backends import Sampling

    entry: dict[str, Any] = {"backend": settings.backend, "model": settings.model}
    entry |= {"base_url": settings.base_url} if settings.base_url else {}
    entry |= {"batch_size": settings.batch_size} if settings.backend == "transformers" else {}
    report = predict_file(
        settings.source,
        settings.output,
        entry,
        sampling=Sampling(
            n=settings.samples,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
        ),
        grader=settings.grader,
        image_root=str(settings.image_root) if settings.image_root else None,
        limit=settings.limit,
        seed=settings.seed,
        batch_size=settings.batch_size,
        system=settings.system,
        prompt=settings.prompt,
    )
    print(*report.lines(), sep="\n")


def score(settings: ScoreSettings) -> None:
    """Write every row with its ratings, and print the report."""
    from uni_dpo.inference.score import score_file
    from uni_dpo.models.rewards import RewardModelOptions

    report = score_file(
        settings.source,
        settings.output,
        RewardModelOptions(
            settings.model,
            settings.template,
            settings.image_max_pixels,
            settings.image_min_pixels,
            settings.dtype,
            settings.trust_remote_code,
        ),
        answer_column=settings.answer_column,
        media_dir=settings.image_root,
        batch_size=settings.batch_size,
    )
    print(*report.lines(), sep="\n")


def compose(
    output: Annotated[Path, typer.Argument(help="A new folder.")],
    vision: Annotated[str, typer.Option(help="Folder or hub name of a CLIP or SigLIP model.")],
    language: Annotated[str, typer.Option(help="Folder or hub name of a causal language model.")],
    dtype: Annotated[str, typer.Option(help="Of the weights; auto is the language model's.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the new projector's weights.")] = 0,
) -> None:
    """Put a vision encoder and a language model together; train the new projector first."""
    from uni_dpo.models.compose import compose as run

    print(*run(vision, language, output, dtype=dtype, seed=seed).lines(), sep="\n")
