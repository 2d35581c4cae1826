"""`uni-dpo predict`, `score`, `compare`, `chat`, `compose`: what asks models, and what makes one."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uni_dpo.cli.entry import print_tables
from uni_dpo.errors import UniDPOError
from uni_dpo.inference.settings import CompareSettings, PredictSettings, ScoreSettings

if TYPE_CHECKING:
    from uni_dpo.inference.chat import Chat

COMMANDS = "/image PATH shows an image with your next line, /new forgets what was said, /exit (or Ctrl-D) ends"


def compare(settings: CompareSettings) -> None:
    """Write and print the answers of both models side by side."""
    from uni_dpo.data.tables.writing import write_rows
    from uni_dpo.inference.compare import Models, changed, page, read_prompts, table, training_facts
    from uni_dpo.inference.compare import compare as answer
    from uni_dpo.models.backends import Sampling
    from uni_dpo.models.backends.base import parse_model
    from uni_dpo.storage.writing import check_writable, write_text

    about: dict[str, Any] = {"batch_size": settings.batch_size, "dtype": settings.dtype, "device": settings.device}
    about |= settings.model_options
    parse_model({**about, "model": settings.trained}, "model_options")
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
        **about,
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

    entry: dict[str, Any] = {"batch_size": settings.batch_size} if settings.backend == "transformers" else {}
    entry |= {**settings.model_options, "backend": settings.backend, "model": settings.model}
    entry |= {"base_url": settings.base_url} if settings.base_url else {}
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


def chat(
    model: Annotated[str, typer.Argument(help="Folder or hub name of a checkpoint or adapter.", show_default=False)],
    images: Annotated[list[Path] | None, typer.Argument(help="Shown with your first line.", show_default=False)] = None,
    system: Annotated[str | None, typer.Option(help="System prompt; without it what the chat template does.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 1024,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Share of the probability that tokens are drawn from.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the weights; auto is the checkpoint's own.")] = "auto",
    quantization: Annotated[str | None, typer.Option(help="4bit or 8bit, by bitsandbytes.")] = None,
    device: Annotated[str, typer.Option(help="auto takes the GPU if there is one.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.")
    ] = False,
) -> None:
    """Talk with a checkpoint, base or instruct, full or adapter, about images or without."""
    from uni_dpo.inference.chat import Chat
    from uni_dpo.models.backends.base import Sampling, parse_model
    from uni_dpo.models.checkpoint import find_checkpoint

    for path in images or []:
        _check_image(path)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    entry = {
        "model": model,
        "dtype": dtype,
        "quantization": quantization,
        "device": device,
        "trust_remote_code": trust_remote_code,
    }
    _, options = parse_model(entry, "")
    find_checkpoint(model)
    talk(Chat(options, sampling, system=system, seed=seed), list(images or []))


def talk(conversation: "Chat", images: list[Path]) -> None:
    """Read lines and print answers until the input ends.

    A fault of one line, such as an image that is not there, is said and the conversation stays as it was.
    """
    asks = sys.stdin.isatty()
    if asks:
        print(COMMANDS)
    while True:
        try:
            line = input("> " if asks else "").strip()
        except EOFError:
            return
        if line == "/exit":
            return
        if line == "/new":
            conversation.begin_anew()
            images = []
        elif line.startswith("/image"):
            images += _given_image(line)
        elif line.startswith("/"):
            print(f"{line.split()[0]} is unknown: {COMMANDS}")
        elif line:
            _answer(conversation, line, images)
            images = []


def _answer(conversation: "Chat", line: str, images: list[Path]) -> None:
    """Print the answer as it comes."""
    try:
        for piece in conversation.say(line, images):
            print(piece, end="", flush=True)
    except UniDPOError as error:
        print(f"error: {error}", file=sys.stderr)
        return
    print()
    if conversation.cut:
        print(f"(cut at {conversation.sampling.max_tokens} tokens; --max-tokens raises the limit)", file=sys.stderr)


def _given_image(line: str) -> list[Path]:
    path = Path(line.removeprefix("/image").strip()).expanduser()
    try:
        _check_image(path)
    except UniDPOError as error:
        print(f"error: {error}", file=sys.stderr)
        return []
    return [path]


def _check_image(path: Path) -> None:
    if not path.is_file():
        raise UniDPOError(f"there is no image file {path}")


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
