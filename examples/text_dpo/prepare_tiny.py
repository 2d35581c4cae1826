"""A tiny text model for trying the recipe without a download or a GPU.

    python examples/text_dpo/prepare_tiny.py outputs/text_dpo/model

writes a Qwen2 of 0.2 million random weights with Qwen's chat template. It knows nothing; what it answers before and
after training shows that every step runs, not what DPO can do.
"""

import argparse
from pathlib import Path

from uni_dpo.cli import run
from uni_dpo.demo.tiny_model import write_tiny_text_model

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write; must be new")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder}: is there already; name a new folder")
    run(lambda: print(write_tiny_text_model(arguments.folder, "writer", seed=arguments.seed)))
