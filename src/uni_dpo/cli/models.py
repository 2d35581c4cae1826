"""`uni-dpo predict`, `score`, `compare`, `chat`, `eval`, `compose`: what asks models, and what makes one."""

import io
import os
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

    print(*predict_file(settings).lines(), sep="\n")


def score(settings: ScoreSettings) -> None:
    """Write every row with its ratings, and print the report."""
    from uni_dpo.inference.score import score_file

    print(*score_file(settings).lines(), sep="\n")


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

    shown = [_found(path) for path in images or []]
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    entry = {"model": model, "dtype": dtype, "quantization": quantization, "device": device}
    _, options = parse_model(entry | {"trust_remote_code": trust_remote_code}, "")
    find_checkpoint(model)
    talk(Chat(options, sampling, system=system, seed=seed), shown)


def talk(conversation: "Chat", images: list[Path]) -> None:
    """Read lines and print answers until the input ends.

    A fault of one line, such as an image that is not there, is said and the conversation stays as it was.
    """
    asks = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes of another encoding end no conversation
    if asks:
        print(COMMANDS)
    while True:
        try:
            line = input("> " if asks else "").strip()
        except EOFError:
            return
        if line == "/exit":
            return
        try:
            if line == "/new":
                conversation.begin_anew()
                images = []
            elif line.startswith("/image"):
                images.append(_found(Path(line.removeprefix("/image").strip())))
            elif line.startswith("/"):
                print(f"{line.split()[0]} is unknown: {COMMANDS}")
            elif line:
                shown, images = images, []
                _answer(conversation, line, shown)
        except UniDPOError as error:
            print(f"error: {error}", file=sys.stderr)


def _answer(conversation: "Chat", line: str, images: list[Path]) -> None:
    """Print the answer as it comes."""
    for piece in conversation.say(line, images):
        print(piece, end="", flush=True)
    print()
    if conversation.cut:
        print(f"(cut at {conversation.sampling.max_tokens} tokens; --max-tokens raises the limit)", file=sys.stderr)


def _found(path: Path) -> Path:
    from uni_dpo.data.tables.reading import is_file

    path = Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises where there is no such user
    if not is_file(path):
        raise UniDPOError(f"there is no image file {path}")
    return path


def compose(
    output: Annotated[Path, typer.Argument(help="A new folder.")],
    vision: Annotated[str, typer.Option(help="Folder or hub name of a CLIP or SigLIP model.")],
    language: Annotated[str, typer.Option(help="Folder or hub name of a causal language model.")],
    dtype: Annotated[str, typer.Option(help="Of the weights; auto is the language model's.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the new projector's weights.")] = 0,
) -> None:
    """Put a vision encoder and a language model together; train the new projector first."""
    from uni_dpo.models.compose import compose as run

    print(*run(vision, language, output, dtype=dtype, seed=seed), sep="\n")


def evaluate(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help='{"model": {…}, "data": {…}}, as VLMEvalKit reads it, or YAML.')
    ],
    work_dir: Annotated[Path, typer.Option(help="Answers, scores and results; an unfinished run resumes here.")],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings instead of the file's, such as model.NAME.seed=1."),
    ] = None,
    data: Annotated[list[str] | None, typer.Option(metavar="NAME...", help="Only these benchmarks.")] = None,
    judge: Annotated[str, typer.Option(help="exact_matching, or a judge model of VLMEvalKit's.")] = "exact_matching",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows of each benchmark.")] = None,
    batch_size: Annotated[str, typer.Option(help="Rows per batch: a number, or auto.")] = "auto",
    backend: Annotated[str | None, typer.Option(help="transformers, vllm or openai, for every model.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Of the server, for backend openai; ends in /v1.")] = None,
    vlmevalkit: Annotated[Path | None, typer.Option(help="A VLMEvalKit checkout to use, not the package.")] = None,
    allow_modified_data: Annotated[
        bool, typer.Option("--allow-modified-data", help="Take benchmark files that are not the published.")
    ] = False,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be read, and count them.")
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Let VLMEvalKit download missing benchmark files.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the bootstrap intervals.")] = 0,
) -> None:
    """Evaluate models on benchmarks and print one table."""
    from uni_dpo.vlmeval.config import read_config
    from uni_dpo.vlmeval.results import as_rich_table
    from uni_dpo.vlmeval.rows import is_first_process
    from uni_dpo.vlmeval.run import Options
    from uni_dpo.vlmeval.run import evaluate as run

    given = [word for word in more or [] if "=" in word]
    others = [word for word in more or [] if "=" not in word]
    if others and not data:
        raise UniDPOError(f"unexpected argument {others[0]!r}; benchmarks are named after --data")
    names = [*(data or []), *others]  # `--data A B`, as VLMEvalKit takes it
    overrides = {key: value for key, value in (("backend", backend), ("base_url", base_url)) if value is not None}
    if batch_size != "auto" and not (batch_size.isdecimal() and int(batch_size)):
        raise UniDPOError(f"--batch-size is {batch_size!r}; it can be a number from 1 on, or auto")
    options = Options(
        judge=judge,
        limit=limit,
        batch_size=None if batch_size == "auto" else int(batch_size),
        checkout=vlmevalkit,
        allow_modified_data=allow_modified_data,
        skip_bad_rows=skip_bad_rows,
        download=download,
        seed=seed,
    )
    results = run(read_config(config, names, overrides, given), work_dir, options)
    if not is_first_process():
        return
    print_tables([as_rich_table(results)])
    print(f"also in {work_dir}/results.json, results.md, results.csv and report.html")
    if results.failures:
        raise typer.Exit(1)
