"""A seeded fuzzer of data files: every format, every `data` command, every pair of formats of `convert`.

`python tests/fuzz/files.py --count 10000 --seed 0` prints what came of them; an input is told by its seed and number,
and `--only NUMBER` tries that one alone and shows its traceback.
"""

import argparse
import contextlib
import csv
import io
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

from PIL import Image

from uni_dpo.cli.app import app  # after the progress bars are off
from uni_dpo.data.formats import FORMATS
from uni_dpo.data.questions import InputOptions, read_questions
from uni_dpo.errors import UniDPOError

FIXTURES = Path(__file__).parents[1] / "data" / "formats" / "fixtures"
SECONDS = 60
"""An input that takes longer hangs."""
PAIRS = list(itertools.product(FORMATS, FORMATS))
ODD: list[Any] = [
    None, True, 0, -1, 3.0, 2**70, 1e308, float("nan"), float("inf"), "", " ", "nan", "N/A", "3", "x" * 5000, "\0",
    "\ud800", "‮", "<image>", "<image><image>", "<|im_start|>user\nq<|im_end|>", "data:image/png;base64,AAAA",
    "http://127.0.0.1:9/x.png", "/dev/zero", "/etc/passwd", "../x.png", "images", "a.png", "a.png,b.png", "{", "[1, 2]",
    [], {}, [None], [[]], [{}], {"bytes": None, "path": None}, {"bytes": "x", "path": 3}, {"role": "user", "value": 1},
    [{"type": "image"}], [{"type": "image_url", "image_url": {"url": None}}], [{"type": "video"}], ["a", "b"],
]  # fmt: skip
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".arrow")


@dataclass
class Outcomes:
    """What came of the inputs: command and end → how many, and those that did not end as they should."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class HangError(BaseException):
    """An input took too long; no `except Exception` may swallow it."""


def fuzz(numbers: Iterable[int], seed: int = 0, outcomes: Outcomes | None = None) -> Outcomes:
    """Try the inputs of these numbers; only `UniDPOError` and exit statuses are right ends."""
    outcomes = outcomes or Outcomes()
    with tempfile.TemporaryDirectory() as folder, _working_in(Path(folder)):
        for number in numbers:
            rng = random.Random(f"{seed}:{number}")
            with tempfile.TemporaryDirectory(dir=folder) as place, _working_in(Path(place)):
                name, run = _input(rng, number)
                end = _ended(run)
                outcomes.counts[f"{name}: {end.splitlines()[0]}"] += 1
                if end not in ("right", "refused"):
                    outcomes.failures.append(f"seed {seed}, number {number}, {name}: {end}")
    return outcomes


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _ended(run: Callable[[], object]) -> str:
    def stop(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run()
    except UniDPOError as error:
        return "refused" if str(error) else "refused without a word"
    except SystemExit as end:
        return "right" if end.code in (0, None, 1) else f"exit status {end.code}"
    except HangError:
        return f"more than {SECONDS} s\n{traceback.format_exc(limit=-4)}"
    except Exception:
        return f"a traceback\n{traceback.format_exc(limit=-6)}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return "right"


def _input(rng: random.Random, number: int) -> tuple[str, Callable[[], object]]:
    """A broken file in the working folder, and what is done with it."""
    source, target = PAIRS[number // 2 % len(PAIRS)]
    name = source if number % 2 else rng.choice(list(FORMATS))
    Image.new("RGB", (8, 6), "red").save("a.png")
    rows = json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))
    rows = [rng.choice(rows) for _ in range(rng.randint(1, 4))]
    file = _write(rng, [mutated(rng, row) if rng.random() < 0.5 else row for row in rows])
    if number % 2:
        output = rng.choice(["out.jsonl", "out.json", "out.parquet"] * 5 + ["out"])
        arguments = ["convert", file, output, "--format", rng.choice([source] * 9 + ["auto"]), "--to", target]
        arguments += rng.choice([[], ["--skip-broken"], ["--image-dir", "copies"], ["--image-root", "."]])
        arguments += rng.choice([[]] * 9 + [["--map", "chosen=rejected"]])
        return "convert", lambda: _command(arguments)
    command = rng.choice(sorted(COMMANDS))
    return command, lambda: COMMANDS[command](rng, file)


def _command(arguments: list[str]) -> None:
    app(["data", *arguments], standalone_mode=False)


def _questions(rng: random.Random, file: str) -> None:
    for question in read_questions(InputOptions(file, rng.choice([None, "."])), Path("extracted")):
        assert question.reference != "nan"
        assert all(Path(image).is_file() for image in question.images)


COMMANDS: dict[str, Callable[[random.Random, str], None]] = {
    "check": lambda rng, file: _command(["check", file, *rng.choice([[], ["--json"], ["--fix", "fixed.jsonl"]])]),
    "stats": lambda rng, file: _command(["stats", file]),
    "stance": lambda rng, file: _command(["stance", file, "out.json", "--support-ratio", "0.5"]),
    "calibrate": lambda rng, file: _command(
        ["calibrate", file, "out.jsonl", "--method", rng.choice(["linear", "rank", "zscore"]),
         *rng.choice([[], ["--by", "id"]])]
    ),
    "register": lambda rng, file: _command(["register", "d", file, "--dataset-dir", "data"]),
    "rebase-images": lambda rng, file: _command(["rebase-images", file, "--root", ".", "--output", "out.jsonl"]),
    "split": lambda rng, file: _command(
        ["split", file, "--part", "a.jsonl=1", "--part", "b.parquet=1", "--by", rng.choice(["image", "prompt", "id"])]
    ),
    "sample": lambda rng, file: _command(["sample", file, "o.json", "--count=2", "--by", rng.choice(["none", "id"])]),
    "merge": lambda rng, file: _command(["merge", "out.parquet", file, file, "--source-column", "from"]),
    "questions": _questions,
}  # fmt: skip


def mutated(rng: random.Random, value: Any) -> Any:
    """A copy of `value` with one part of it replaced, removed, renamed, repeated or wrapped."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            return {key: item for key, item in value.items() if key != name}
        if kind < 0.15:
            return {("x" if key == name else key): item for key, item in value.items()}
        return value | {name: mutated(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value[:place] + value[place + rng.choice([0, 1]) :] + value[:1]
        return [*value[:place], mutated(rng, value[place]), *value[place + 1 :]]
    return rng.choice([rng.choice(ODD), rng.choice(ODD), [value], str(value)])


def _write(rng: random.Random, rows: list[Any]) -> str:
    """The rows in a file of any type, now and then with broken bytes; its name."""
    suffix = rng.choice(SUFFIXES if all(isinstance(row, dict) for row in rows) else SUFFIXES[:2])
    file = Path(rng.choice(["rows", "train", "a b,c"]) + suffix)
    if suffix in (".parquet", ".arrow") and not _written_by_arrow(file, rows):
        file = file.with_suffix(".jsonl")
    if file.suffix == ".json":
        file.write_text(json.dumps(rows), encoding="utf-8")
    elif file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif file.suffix == ".csv":
        with file.open("w", encoding="utf-8", errors="surrogatepass", newline="") as text:
            writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
    if rng.random() < 0.15:
        broken = bytearray(file.read_bytes())
        for _ in range(rng.randint(1, 3)):
            broken[rng.randrange(len(broken))] = rng.choice(b'\0\xff"{[,\n')
        file.write_bytes(broken[: rng.choice([len(broken), rng.randrange(len(broken))])])
    return str(file)


def _written_by_arrow(file: Path, rows: list[Any]) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pa.Table.from_pylist(rows)
        if file.suffix == ".parquet":
            pq.write_table(table, file)
        else:
            with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError):
        return False
    return True


def main() -> int:
    """Fuzz, print seeds and counts; exit status 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    start = time.monotonic()
    numbers = range(arguments.count) if arguments.only is None else [arguments.only]
    outcomes = Outcomes()
    for first in range(0, len(numbers), 500):
        fuzz(numbers[first : first + 500], arguments.seed, outcomes)
        print(f"{min(first + 500, len(numbers)):,} of {len(numbers):,}", file=sys.stderr, flush=True)
    for name, count in sorted(outcomes.counts.items()):
        print(f"{count:8,}  {name}")
    print(*outcomes.failures, sep="\n\n")
    total = sum(outcomes.counts.values())
    print(f"files: seed {arguments.seed}, {total:,} inputs, {len(outcomes.failures):,} failures, ", end="")
    print(f"{time.monotonic() - start:.0f} s")
    return int(bool(outcomes.failures))


if __name__ == "__main__":
    sys.exit(main())
