"""`uni-dpo predict`, `score`, `compare`, `compose`: what asks models, and what makes one."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

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
    pairs: Annotated[Path | None, typer.Option(help="What it was trained on, to print size and ratio.")] = None,
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
    from uni_dpo.inference.compare import Models, read_prompts, training_facts
    from uni_dpo.inference.compare import compare as answer
    from uni_dpo.inference.compare_page import changed, page, table
    from uni_dpo.models.backends import Sampling
    from uni_dpo.storage.writing import check_writable, write_text

    for name in ("comparison.json", "comparison.html"):
        check_writable(output / name)
    found = read_prompts(prompts, image_root=image_root, extracted=output / "images")
    asked = [replace(prompt, system=prompt.system or system) for prompt in found]
    models = Models.find(trained, original)
    facts = training_facts(trained, pairs)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    rows = answer(
        asked, models, output / "answers", sampling, seed=seed, batch_size=batch_size, dtype=dtype.value, device=device
    )
    write_rows(output / "comparison.json", rows)
    write_text(output / "comparison.html", page(rows, f"{models.original} before and after {trained}", facts))
    print_tables([table(rows)])
    for fact in facts:
        print(fact)
    print(f"{changed(rows):,} of {len(rows):,} answers differ; written to {output}")


def predict(
    source: Annotated[Path, typer.Argument(help="Rows of `question`, `images`, and maybe `id` and `answer`.")],
    output: Annotated[Path, typer.Argument(help="A .json, .jsonl or .parquet file.")],
    model: Annotated[str, typer.Option(help="Folder or hub name of a checkpoint, or its name on the server.")],
    backend: Annotated[str, typer.Option(help="transformers, vllm or openai.")] = "transformers",
    base_url: Annotated[str | None, typer.Option(help="Of the server, for backend openai; ends in /v1.")] = None,
    grader: Annotated[
        str, typer.Option(help="exact, numeric, multiple_choice, math, vqa, or module:function.")
    ] = "exact",
    system: Annotated[str | None, typer.Option(help="System prompt; without it what the chat template does.")] = None,
    prompt: Annotated[str | None, typer.Option(help="math, or a file with the gap {question}.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers per question; their mean and pass@k are printed.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Share of the probability that tokens are drawn from.")] = 1.0,
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
        sampling=Sampling(n=samples, temperature=temperature, top_p=top_p, max_tokens=max_tokens),
        grader=grader,
        image_root=str(image_root) if image_root else None,
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        system=system,
        prompt=prompt,
    )
    for line in report.lines():
        print(line)


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
