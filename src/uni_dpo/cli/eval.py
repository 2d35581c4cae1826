"""`uni-dpo eval`: benchmarks and own data, one table."""

from pathlib import Path
from typing import Annotated

import typer

from uni_dpo.cli.entry import print_tables
from uni_dpo.errors import UniDPOError


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
