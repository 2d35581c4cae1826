"""`uni-dpo score`: rate every answer of a file, keep what is done, write the file when all is done."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tqdm import tqdm

from uni_dpo.data.faults import Fault, PreferenceDataError
from uni_dpo.data.images import ImageChecker
from uni_dpo.data.tables.reading import source_files
from uni_dpo.data.tables.writing import keep_inputs, row_writer
from uni_dpo.errors import UniDPOError
from uni_dpo.inference.score_rows import Layout, PairLayout, RateableRow, layout_of
from uni_dpo.models.rewards.checkpoints import (
    RewardModelOptions,
    checkpoint_identity,
    find_reward_checkpoint,
    load_reward_model,
)
from uni_dpo.models.rewards.conversation import Conversation
from uni_dpo.storage.identity import digest
from uni_dpo.storage.rowlog import RowLog

_KEPT_FAULTS = 1_000


@dataclass
class ScoreReport:
    """What was rated.

    Attributes:
        output: the file that was written.
        rows: its rows.
        agreement: for pairs, the share whose chosen answer is rated above the rejected one.
        median: of the ratings of chosen answers, or of all answers where there are no pairs.
    """

    output: Path
    rows: int = 0
    agreement: float | None = None
    median: float = 0.0

    def lines(self) -> list[str]:
        """The report, one line per fact."""
        lines = [f"rows: {self.rows:,}", f"output: {self.output}"]
        if self.agreement is None:
            return [*lines, f"median rating: {self.median:.3f}"]
        return [
            *lines,
            f"chosen rated above rejected: {self.agreement:.1%}",
            f"median rating of chosen (for uni_dpo_tau_good, if the NLL term is on): {self.median:.3f}",
        ]


def score_file(
    source: str | Path,
    output: str | Path,
    options: RewardModelOptions,
    *,
    answer_column: str | None = None,
    media_dir: str | Path | None = None,
    batch_size: int = 8,
) -> ScoreReport:
    """Rate the answers in `source` and write its rows with their ratings to `output`.

    Pairs get `score_chosen` and `score_rejected` (or the columns that hold scores already), a row with one
    answer gets `score`, a row with a list of answers `scores`. What is rated is kept beside `output` in
    `OUTPUT.ratings.jsonl` until the file is written, so a run that was stopped goes on where it stopped.

    Args:
        source: a file or folder of rows.
        output: a .json, .jsonl or .parquet file.
        options: the reward model.
        answer_column: what to rate, where `source` holds answers under another name.
        media_dir: where image paths start, and which none may leave; None for the folder of `source`.
        batch_size: conversations in one forward pass.

    Raises:
        UniDPOError: rows that cannot be rated, all of them named, or no reward model; nothing is loaded by then.
    """
    output = Path(output)
    files = source_files(source)
    keep_inputs(output, files)
    checkpoint = find_reward_checkpoint(options)
    layout = layout_of(source, answer_column)
    images = ImageChecker(media_dir or files[0].parent, media_dir)
    model_digest = digest(checkpoint_identity(options))
    done = RowLog(output.with_name(f"{output.name}.ratings.jsonl"))
    with images.running():
        waiting: dict[str, Conversation] = {}
        for row in _usable_rows(files, layout, images, sees_images=checkpoint.kind == "value_head"):
            waiting |= {_key(conversation, model_digest): conversation for conversation in row.conversations}
        total = len(waiting)
        for key in waiting.keys() & done.rows.keys():
            del waiting[key]
        if waiting:
            _rate(waiting, total, done, options, batch_size)
        report = _write(files, layout, images, done, model_digest, output)
    done.path.unlink(missing_ok=True)
    return report


def _usable_rows(
    files: list[Path], layout: Layout, images: ImageChecker, *, sees_images: bool
) -> Iterator[RateableRow]:
    """All rows; in the end an error that names those which cannot be rated."""
    faults: list[Fault] = []
    count = 0
    for file in files:
        for index, row in enumerate(
            tqdm(layout.read(file, images), desc=f"Checking {file.name}", unit=" rows", delay=2)
        ):
            if not sees_images and any(conversation.images for conversation in row.conversations):
                advice = "rate it with a reward model that LlamaFactory trained (stage: rm)"
                row.faults.append(Fault("image_unseen", "images", "a classifier sees no images", advice, index, file))
            count += len(row.faults)
            faults += row.faults[: _KEPT_FAULTS - len(faults)]
            if not count:
                yield row
    if count:
        raise PreferenceDataError.of(faults, total=count)


def _key(conversation: Conversation, model: str) -> str:
    parts = (conversation.messages(), conversation.system, [str(image) for image in conversation.images], model)
    return digest(parts)


def _rate(
    waiting: dict[str, Conversation], total: int, done: RowLog, options: RewardModelOptions, batch_size: int
) -> None:
    if batch_size < 1:
        raise UniDPOError(f"the batch size is {batch_size}; it starts at 1")
    model = load_reward_model(options)
    items = iter(waiting.items())
    with tqdm(desc="Rating", unit=" answers", total=total, initial=total - len(waiting)) as bar:
        while batch := dict(itertools.islice(items, batch_size)):
            ratings = model.rate(list(batch.values()))
            rows = [{"id": key, "rating": rating} for key, rating in zip(batch, ratings, strict=True)]
            done.append(rows)
            bar.update(len(rows))


def _write(
    files: list[Path], layout: Layout, images: ImageChecker, done: RowLog, model: str, output: Path
) -> ScoreReport:
    report = ScoreReport(output)
    agreeing, first_ratings = 0, []
    with row_writer(output) as writer:
        for file in files:
            for row in layout.read(file, images):
                ratings = [float(done.rows[_key(conversation, model)]["rating"]) for conversation in row.conversations]
                writer.write(layout.rated(row.row, ratings))
                report.rows += 1
                agreeing += ratings[0] > ratings[-1]
                first_ratings += ratings[:1] if isinstance(layout, PairLayout) else ratings
    report.median = median(first_ratings)
    if isinstance(layout, PairLayout):
        report.agreement = agreeing / report.rows
    return report
