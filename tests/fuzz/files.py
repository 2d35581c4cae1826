"""A seeded fuzzer of data files: every format, every `data` command, every pair of formats of `convert`.

`python tests/fuzz/files.py --count 10000 --seed 0` prints what came of them; an input is told by its seed and number,
and `--only NUMBER` tries that one alone and shows its traceback.
"""

import csv
import itertools
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

from fuzzing import main, mutated
from PIL import Image

from uni_dpo.cli.app import app  # after the progress bars are off
from uni_dpo.data.formats import FORMATS
from uni_dpo.data.questions import InputOptions, read_questions

FIXTURES = Path(__file__).parents[1] / "data" / "formats" / "fixtures"
PAIRS = list(itertools.product(FORMATS, FORMATS))
ODD: list[Any] = [
    None, True, 0, -1, 3.0, 2**70, 1e308, float("nan"), float("inf"), "", " ", "nan", "N/A", "3", "x" * 5000, "\0",
    "\ud800", "‮", "<image>", "<image><image>", "<|im_start|>user\nq<|im_end|>", "data:image/png;base64,AAAA",
    "http://127.0.0.1:9/x.png", "/dev/zero", "/etc/passwd", "../x.png", "images", "a.png", "a.png,b.png", "{", "[1, 2]",
    [], {}, [None], [[]], [{}], {"bytes": None, "path": None}, {"bytes": "x", "path": 3}, {"role": "user", "value": 1},
    [{"type": "image"}], [{"type": "image_url", "image_url": {"url": None}}], [{"type": "video"}], ["a", "b"],
]  # fmt: skip
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".arrow")


def broken_file(rng: random.Random, number: int) -> tuple[str, Callable[[], object]]:
    """A broken file in the working folder, and what is done with it."""
    source, target = PAIRS[number // 2 % len(PAIRS)]
    name = source if number % 2 else rng.choice(list(FORMATS))
    Image.new("RGB", (8, 6), "red").save("a.png")
    rows = json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))
    rows = [rng.choice(rows) for _ in range(rng.randint(1, 4))]
    file = _write(rng, [mutated(rng, row, ODD) if rng.random() < 0.5 else row for row in rows])
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


if __name__ == "__main__":
    sys.exit(main("files", broken_file, __doc__))
