"""Rows per second and peak memory of checking and converting a large pair file.

    python benchmarks/data_check.py --rows 1000000

Every step runs in a process of its own, whose high-water mark (VmHWM, Linux) is the memory that it took.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMAGES = 1_000
STEPS = {
    "check": "from uni_dpo.data.checks.check import check_dataset\n"
    "report = check_dataset(sys.argv[1], media_dir=sys.argv[2])\n"
    "assert report.faultless, report.faults[:3]",
    "check, images left alone": "from uni_dpo.data.checks.check import check_dataset\n"
    "assert check_dataset(sys.argv[1], media_dir=sys.argv[2], check_images=False).faultless",
    "JSONL → Parquet": "from uni_dpo.data.convert import convert\nconvert(sys.argv[1], sys.argv[2] + '/there.parquet')",
    "Parquet → JSONL": "from uni_dpo.data.convert import convert\n"
    "convert(sys.argv[2] + '/there.parquet', sys.argv[2] + '/back.jsonl')",
}
PROGRAM = """import sys
from pathlib import Path
{step}
print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])
"""


def main() -> None:
    """Make the file, run the steps, print a Markdown table."""
    parser = argparse.ArgumentParser(description="Rows per second and peak memory of data checks.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_pairs(folder, rows)
        print(f"{rows:,} rows, {source.stat().st_size / 1e6:,.0f} MB, {IMAGES:,} images of 224 × 224\n")
        print("| step | seconds | rows per second | peak memory |")
        print("| --- | ---: | ---: | ---: |")
        for step, lines in STEPS.items():
            seconds, peak = run(lines, source, folder)
            print(f"| {step} | {seconds:.1f} | {rows / seconds:,.0f} | {peak / 1024:,.0f} MiB |", flush=True)
        same = digest(source) == digest(folder / "back.jsonl")
        print(f"\nthe file that came back is {'the same, byte for byte' if same else 'NOT the same'}")
        sys.exit(0 if same else 1)


def write_pairs(folder: Path, rows: int) -> Path:
    """A JSONL file of scored pairs over photo-like JPEG images."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(IMAGES):
        coarse = draw.integers(0, 255, size=(14, 14, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((224, 224), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    source = folder / "pairs.jsonl"
    with source.open("w", encoding="utf-8") as out:
        for number in range(rows):
            row = {
                "instruction": f"<image>Question {number}: what does the picture show on its left side?",
                "chosen": "It shows a red area with soft edges, " * 6 + f"number {number}.",
                "rejected": "It shows a dog, " * 9 + f"number {number}.",
                "score_chosen": 3.0 + number % 20 / 10,
                "score_rejected": number % 30 / 10,
                "id": number,
                "images": [f"{number % IMAGES}.jpg"],
            }
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return source


def run(step: str, source: Path, folder: Path) -> tuple[float, int]:
    """Seconds and peak memory (KiB) of one step in a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, "-c", PROGRAM.format(step=step), str(source), str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - start, int(done.stdout)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
