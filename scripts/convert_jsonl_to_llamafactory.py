"""Turn the published pairs of mathematics into a file that LlamaFactory trains on.

    python scripts/convert_jsonl_to_llamafactory.py --input data/Train_Qwen_2_5_math_7B.jsonl

The same as `uni-dpo data convert --format math`: question, answers, scores, and the system prompt that the rows carry.
What `INPUT` below says is used where the flag is not given.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from uni_dpo.cli import run
from uni_dpo.data.convert import convert
from uni_dpo.errors import UniDPOError

INPUT = ""
"""The published .jsonl file."""


def main() -> None:
    """Parse, convert, print the counts."""
    parser = argparse.ArgumentParser(description="Published pairs of mathematics for LlamaFactory.")
    parser.add_argument("--input", default=INPUT, help="the published .jsonl file")
    parser.add_argument("--output", help="without it INPUT_llama_factory.json, beside the input")
    given = parser.parse_args()
    if not given.input:
        raise UniDPOError("name the published file: --input, or INPUT at the top of this script")
    path = Path(given.input)
    output = given.output or path.with_name(f"{path.stem}_llama_factory.json")
    print("\n".join(convert(path, output, from_format="math").lines()))


if __name__ == "__main__":
    run(main)
