"""`uni-dpo data …`: check, calibrate, convert, register and reshape preference data."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from uni_dpo.cli.entry import print_tables
from uni_dpo.data.ranking import Pairing

if TYPE_CHECKING:
    from uni_dpo.data.checks.check import CheckReport

app = typer.Typer(help="Check, convert and reshape preference data.", no_args_is_help=True)

Source = Annotated[Path, typer.Argument(help="A .json, .jsonl, .parquet, .arrow or .csv file, or a folder of them.")]
Output = Annotated[Path, typer.Argument(help="A .json, .jsonl or .parquet file.")]
Seed = Annotated[int, typer.Option(help="Fixes what is drawn.")]
DatasetDir = Annotated[Path, typer.Option("--dataset-dir", help="The folder of dataset_info.json.")]
MediaDir = Annotated[
    Path | None, typer.Option("--image-root", "--media-dir", help="Where image paths start; none may leave it.")
]


@app.command()
def check(
    dataset: Annotated[str, typer.Argument(help="A file, a folder, or a name in dataset_info.json.")],
    dataset_dir: DatasetDir = Path("data"),
    media_dir: MediaDir = None,
    scores: Annotated[bool, typer.Option(help="Rows without scores are at fault.")] = True,
    images: Annotated[bool, typer.Option(help="Open the images and videos.")] = True,
    whole_videos: Annotated[bool, typer.Option("--whole-videos", help="Decode them to their ends; slow.")] = False,
    qual_eta: Annotated[float, typer.Option(help="η for which w_qual is shown.")] = 0.7,
    tau_good: Annotated[float, typer.Option(help="τ_good for which the share above it is shown.")] = 2.5,
    pairing: Annotated[Pairing, typer.Option(help="Which pairs of ranked answers count.")] = "all",
    min_gap: Annotated[float, typer.Option(min=0, help="Least difference of two scores that makes a pair.")] = 0.0,
    model: Annotated[Path | None, typer.Option(help="A checkpoint whose tokenizer counts tokens.")] = None,
    cutoff_len: Annotated[int, typer.Option(help="LlamaFactory's limit, with --model.")] = 4096,
    image_max_pixels: Annotated[int, typer.Option(help="LlamaFactory's limit, with --model.")] = 768 * 768,
    image_min_pixels: Annotated[int, typer.Option(help="LlamaFactory's limit, with --model.")] = 32 * 32,
    video_max_pixels: Annotated[int, typer.Option(help="LlamaFactory's limit of a frame, with --model.")] = 256 * 256,
    video_fps: Annotated[float, typer.Option(help="Frames that LlamaFactory takes per second, with --model.")] = 2.0,
    video_maxlen: Annotated[int, typer.Option(help="Frames that it takes at most, with --model.")] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with figures.")] = None,
    fix: Annotated[Path | None, typer.Option(help="Write the good rows there, the others beside it.")] = None,
) -> None:
    """Find every fault of a dataset, and say what it is like. Exit status 1 where a row is at fault."""
    from dataclasses import replace

    from uni_dpo.data.checks.check import check_dataset
    from uni_dpo.data.checks.lengths import LengthCounter
    from uni_dpo.data.image_state import ImageLimits
    from uni_dpo.data.ranking import PairChoice
    from uni_dpo.data.videos import FRAME, VideoLimits
    from uni_dpo.report.check import write_check_page
    from uni_dpo.storage.writing import check_writable

    if html is not None:
        check_writable(html)
    counter = None
    if model is not None:
        frame = replace(FRAME, max_pixels=video_max_pixels)
        counter = LengthCounter(
            model,
            cutoff_len=cutoff_len,
            images=ImageLimits(image_max_pixels, image_min_pixels),
            videos=VideoLimits(video_fps, video_maxlen, frame),
        )
    report = check_dataset(
        dataset,
        dataset_dir=dataset_dir if (dataset_dir / "dataset_info.json").is_file() else None,
        media_dir=media_dir,
        scores_required=scores,
        check_images=images,
        whole_videos=whole_videos,
        qual_eta=qual_eta,
        tau_good=tau_good,
        lengths=counter,
        fix=fix,
        choice=PairChoice(pairing, min_gap),
    )
    if html is not None:
        write_check_page(html, report)
    _print_report(report, as_json)
    raise typer.Exit(0 if report.faultless else 1)


@app.command()
def stats(
    dataset: Annotated[str, typer.Argument(help="A file, a folder, or a name in dataset_info.json.")],
    dataset_dir: DatasetDir = Path("data"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a dataset is like, without opening images or asking for scores."""
    from uni_dpo.data.checks.check import check_dataset

    known = dataset_dir if (dataset_dir / "dataset_info.json").is_file() else None
    report = check_dataset(dataset, dataset_dir=known, scores_required=False, check_images=False)
    _print_report(report, as_json)


@app.command()
def convert(
    source: Source,
    output: Annotated[Path, typer.Argument(help="A .json, .jsonl or .parquet file, or a folder for `datasets`.")],
    from_format: Annotated[str, typer.Option("--format", help="The layout of SOURCE, or auto.")] = "llamafactory",
    to_format: Annotated[str, typer.Option("--to", help="The layout of OUTPUT.")] = "llamafactory",
    pairing: Annotated[Pairing, typer.Option(help="Which pairs a ranked list gives.")] = "all",
    split: Annotated[str | None, typer.Option(help="Which split of SOURCE.")] = None,
    column: Annotated[
        list[str] | None, typer.Option("--map", help="FIELD=COLUMN, such as chosen=good; may be repeated.")
    ] = None,
    image_dir: Annotated[Path | None, typer.Option(help="Copy the images there.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Where paths in SOURCE start; none may leave it.")] = None,
    skip_broken: Annotated[bool, typer.Option(help="Leave out rows that are not in the format.")] = False,
) -> None:
    """Rewrite pairs from one format to another; what the new one cannot hold is counted and named."""
    from uni_dpo.data.convert import convert, parse_columns

    result = convert(
        source,
        output,
        from_format=from_format,
        to_format=to_format,
        pairing=pairing,
        split=split,
        columns=parse_columns(column or []),
        image_dir=image_dir,
        image_root=image_root,
        skip_broken=skip_broken,
    )
    print(*result.lines(), sep="\n")


@app.command()
def formats() -> None:
    """List the formats that `convert` reads and writes."""
    from uni_dpo.data.formats import format_table

    print(format_table())


@app.command()
def stance(
    source: Source,
    output: Output,
    support_ratio: Annotated[float, typer.Option(help="Share of the rows that choose `support`; the first ones.")],
    count: Annotated[int | None, typer.Option(min=1, help="Take only the first rows.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt of every row.")] = None,
) -> None:
    """Make pairs of rows with `prompt`, `support` and `oppose`."""
    from uni_dpo.data.formats.stance import make_stance_pairs

    counts = make_stance_pairs(source, output, support_ratio=support_ratio, count=count, system=system)
    print(f"{output}:", *(f"{rows:,} rows choose {stance}" for stance, rows in counts.items()), sep="\n")
    if count is not None and (found := sum(counts.values())) < count:
        print(f"{source} has {found:,} rows, not {count:,}: all of them are taken")


@app.command()
def calibrate(
    source: Source,
    output: Output,
    method: Annotated[
        Literal["linear", "rank", "zscore"], typer.Option(help="How a rater's scores are mapped.")
    ] = "linear",
    low: Annotated[float, typer.Option(help="Lower end of the new range.")] = 0.0,
    high: Annotated[float, typer.Option(help="Upper end of the new range.")] = 5.0,
    by: Annotated[str | None, typer.Option(help="The column that names the rater or source.")] = None,
    unit: Annotated[str, typer.Option(help="The column by which several raters' rows belong together.")] = "id",
    score_chosen: Annotated[str, typer.Option(help="Column of the chosen answer's score.")] = "score_chosen",
    score_rejected: Annotated[str, typer.Option(help="Column of the rejected answer's score.")] = "score_rejected",
) -> None:
    """Bring the scores of every rater onto one scale, and suggest η and τ_good for it."""
    from uni_dpo.data.calibrate import calibrate

    result = calibrate(
        source,
        output,
        method=method,
        low=low,
        high=high,
        by=by,
        unit=unit,
        score_chosen=score_chosen,
        score_rejected=score_rejected,
    )
    print(*result.lines(), sep="\n")


@app.command()
def register(
    name: Annotated[str, typer.Argument(help="What the dataset is called from now on.")],
    file: Source,
    dataset_dir: DatasetDir = Path("data"),
    replace: Annotated[bool, typer.Option(help="Replace an entry of that name.")] = False,
) -> None:
    """Write a dataset's entry into dataset_info.json; the columns are detected and shown."""
    from uni_dpo.data.register import register_file

    attributes = register_file(name, file, dataset_dir, replace=replace)
    print(f"{name} in {dataset_dir / 'dataset_info.json'}:")
    print(json.dumps(attributes, ensure_ascii=False, indent=2))
    if "images" in attributes["columns"] and file.absolute().parent != dataset_dir.absolute():
        print(f"other losses than uni_dpo find its images with media_dir: {file.absolute().parent}")


@app.command()
def rebase_images(
    source: Source,
    root: Annotated[list[Path], typer.Option(help="A folder that holds what follows the anchor; may be repeated.")],
    anchor: Annotated[str, typer.Option(help="The path component that old and new paths share.")] = "MM-RLHF",
    output: Annotated[Path | None, typer.Option(help="Where to write; else SOURCE, and a copy of it is kept.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Count only, write nothing.")] = False,
) -> None:
    """Give image paths the folder that their files are in now."""
    from uni_dpo.data.image_paths import rebase_images

    print(*rebase_images(source, root, anchor=anchor, output_file=output, check=check).lines(), sep="\n")


@app.command()
def split(
    source: Source,
    part: Annotated[list[str], typer.Option(help="FILE=SHARE, two or more times, such as train.jsonl=0.9.")],
    by: Annotated[str, typer.Option(help="What no two files share: image, prompt, a column, or none.")] = "image",
    image_root: Annotated[
        Path | None, typer.Option(help="Where image paths start, and stay; without it they start beside each file.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Split rows into files, so that no image (or prompt) stands in two of them."""
    from uni_dpo.data.tables.splitting import parse_shares, split

    counts = split(source, parse_shares(part), by=None if by == "none" else by, image_root=image_root, seed=seed)
    print(*(f"{file}: {count:,} rows" for file, count in counts.items()), sep="\n")


@app.command()
def sample(
    source: Source,
    output: Output,
    count: Annotated[int, typer.Option(help="How many rows.")],
    by: Annotated[str, typer.Option(help="Draw whole groups by image, prompt, or a column; none for rows.")] = "none",
    seed: Seed = 0,
) -> None:
    """Draw rows at random; they stay in their order."""
    from uni_dpo.data.tables.splitting import sample

    written = sample(source, output, count, by=None if by == "none" else by, seed=seed)
    print(f"{output}: {written:,} rows" + (f"; {source} has no more" if written < count and by == "none" else ""))


@app.command()
def apply(
    source: Annotated[Path, typer.Argument(help="The file of pairs that was trained on.")],
    marked: Annotated[Path, typer.Argument(help="What a page exported: marked.jsonl.")],
    output: Output,
) -> None:
    """Drop, swap or set apart the pairs that were marked on a page."""
    from uni_dpo.data.marked import apply_marks

    print(*apply_marks(source, marked, output).lines(), sep="\n")


@app.command()
def merge(
    output: Output,
    sources: Annotated[list[Path], typer.Argument(help="Files or folders in the same layout.")],
    source_column: Annotated[str | None, typer.Option(help="Add a column with the file's name.")] = None,
) -> None:
    """Bring the rows of several files into one."""
    from uni_dpo.data.tables.splitting import merge

    counts = merge(sources, output, source_column=source_column)
    print(*(f"{source}: {count:,} rows" for source, count in counts.items()), sep="\n")


def _print_report(report: "CheckReport", as_json: bool) -> None:
    from uni_dpo.report.check import tables

    if as_json:
        print(json.dumps(report.as_dict(), ensure_ascii=False, indent=2, default=str))
    else:
        print_tables(tables(report))
