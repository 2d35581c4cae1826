"""The loop that predict, score and compare share: check first, then ask in batches and keep every reply."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from uni_dpo.data.tables.reading import source_files
from uni_dpo.data.tables.writing import check_output
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import Failure
from uni_dpo.storage.rowlog import Row, RowLog
from uni_dpo.storage.writing import holding

T = TypeVar("T")
Ask = Callable[[Sequence[T]], Sequence[Row | Failure]]
"""Puts a batch to a model; a reply is a row without its id, or why there is none."""


@contextmanager
def replies_for(source: str | Path, output: str | Path, kind: str) -> Iterator[RowLog]:
    """Hold the log of what is done of `output`, which stands beside it as `OUTPUT.KIND.jsonl` until all is done.

    Raises:
        UniDPOError: `output` cannot be written or is one of the files of `source`, or another run is writing it.
    """
    output = Path(output)
    check_output(output, source_files(source))
    path = output.with_name(f"{output.name}.{kind}.jsonl")
    with holding(path, str(output)):
        log = RowLog(path)
        yield log
        log.remove()


def ask_all(
    items: Mapping[str, T],
    log: RowLog,
    load: Callable[[], Ask[T]],
    *,
    title: str,
    unit: str,
    batch_size: int,
    called: Callable[[T], object] = str,
) -> None:
    """Ask for every item that the log has no reply to; log each batch as it is done.

    Args:
        items: what is asked, by a key that depends on everything that the reply depends on.
        log: gets the replies, under the keys.
        load: loads the model; it is not called where nothing is left to ask.
        title, unit: of the progress bar.
        called: how a message names an item.

    Raises:
        UniDPOError: items got no reply; all others are in the log.
    """
    waiting = {key: item for key, item in items.items() if key not in log.rows}
    if not waiting:
        return
    ask = load()
    failures: list[str] = []
    with tqdm(desc=title, unit=f" {unit}", total=len(items), initial=len(items) - len(waiting)) as bar:
        left = iter(waiting.items())
        while batch := list(itertools.islice(left, batch_size)):
            replies = ask([item for _, item in batch])
            rows = []
            for (key, item), reply in zip(batch, replies, strict=True):
                if isinstance(reply, Failure):
                    failures.append(f"{called(item)}: {reply.reason}")
                else:
                    rows.append({"id": key, **reply})
            log.append(rows)
            bar.update(len(batch))
    if failures:
        shown = "\n".join(f"  {failure}" for failure in failures[:20])
        raise UniDPOError(
            f"{len(failures):,} of {len(items):,} {unit} got no reply; run the same command again to ask them, without "
            f"those that are refused for good; all other replies are kept:\n{shown}"
        )
