"""The first commands of README.md and of every page under docs/, run as written in a clean copy of the repository.

    python tests/pages/first_commands.py [docs/engine.md …]

Each page's first block of commands is read from the page itself. A command whose checkpoint, data set or placeholder is
not on this machine has to say so in one message; all others have to end well, and the pages that print a figure have to
reach it. No network is used.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MINUTES = 30
"""A command that takes longer hangs."""
TINY = ("divide_and_conquer", "dpo_reward", "judge", "verifiable")
WORKS = " ".join(f"outputs/{name}_tiny" for name in TINY)
NO_CONFIG = "there is no such configuration file"
BLOCK = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Expected:
    """What is to come of a page's first block.

    Attributes:
        refused: what the message of a command that cannot run here says, a regular expression; empty where all commands
            end well.
        first: so many commands of the block; the others are those of the page's own tests.
        after: looks at the folder; returns what is wrong, or nothing.
        more: commands of the page that follow from the first ones.
    """

    refused: str = ""
    first: int = 99
    after: Callable[[Path], str] = lambda folder: ""
    more: tuple[str, ...] = ()


def sound_pairs(folder: Path) -> str:
    """In each of the four runs most of the chosen descriptions are true, and few of the rejected ones."""
    lines = (folder / "figures.txt").read_text(encoding="utf-8").splitlines()
    found = [
        re.match(r"(\w+): (\d+) pairs; true are (\d+)% of the chosen and (\d+)% of the rejected", x) for x in lines
    ]
    sound = [bool(x and int(x[2]) >= 10 and int(x[3]) >= 60 and int(x[4]) <= 30) for x in found]
    return "" if sound == [True] * len(TINY) else f"figures that are not sound: {lines}"


def has(*places: str) -> Callable[[Path], str]:
    """Every one of these files is there."""
    return lambda folder: ", ".join(f"no {place}" for place in places if not (folder / place).is_file())


def tiny(name: str) -> str:
    """The engine run of a tiny configuration."""
    return f"uni-dpo engine run examples/engine/{name}_tiny.yaml --work-dir outputs/{name}_tiny"


PAGES = {
    "README.md": Expected(first=1, after=has("outputs/demo/align/summary.md", "outputs/demo/align/report.html")),
    "docs/align.md": Expected(refused=NO_CONFIG),
    "docs/configure.md": Expected(refused=NO_CONFIG),
    "docs/demo.md": Expected(first=1, after=has("outputs/demo/align/summary.md", "outputs/demo/align/report.html")),
    "docs/engine.md": Expected(
        more=(*(tiny(name) for name in TINY[1:]), f"python examples/engine/count_true.py {WORKS} > figures.txt"),
        after=sound_pairs,
    ),
    "docs/evaluate.md": Expected(refused=NO_CONFIG),
    "docs/gain.md": Expected(
        first=0,
        more=("python benchmarks/gain.py run outputs/gain --minutes 1",),
        after=has("outputs/gain/digits/rows.jsonl"),
    ),
    "docs/math_and_text.md": Expected(
        after=has("outputs/text_reward_model_tiny/dataset/pairs.json", "outputs/math_tiny/dataset/pairs.json")
    ),
    "docs/models.md": Expected(refused="bf16: true needs a GPU|mm_rlhf|dataset|model_name_or_path"),
    "docs/plan.md": Expected(refused=NO_CONFIG),
    "docs/ppo.md": Expected(refused="saves/vision_alignment/sft|prompts.jsonl"),
    "docs/prepare.md": Expected(refused="pairs.json: no such file"),
    "docs/report.md": Expected(refused="no such file or folder"),
    "docs/speed.md": Expected(),
    "docs/text_dpo.md": Expected(first=1, after=has("outputs/text_dpo/pairs.json")),
    "docs/train.md": Expected(refused=NO_CONFIG),
    "docs/trl.md": Expected(refused="bf16/gpu|trl-lib/ultrafeedback_binarized|Qwen/Qwen2-0.5B-Instruct", first=1),
    "docs/vision_alignment.md": Expected(refused="llava/sft.json: no such file", first=1),
}
"""What is to come of each page that has commands.

Those of `docs/overlay.md` name a checkout of another project, and those of `docs/install.md` change this environment.
"""


def commands_of(page: str) -> list[str]:
    """The commands of a page's first block, a line that ends in a backslash with the next."""
    found = BLOCK.search((ROOT / page).read_text(encoding="utf-8"))
    text = found.group(1).replace("\\\n", " ") if found else ""
    return [line.partition(" #")[0].strip() for line in text.splitlines() if line.strip()]


def clean_copy(folder: Path) -> None:
    """The tracked files of the repository, and this environment as `.venv`."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])


def run_page(page: str) -> list[str]:
    """Run a page's first commands; return what was wrong."""
    expected, wrong = PAGES[page], []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        clean_copy(folder)
        for command in [*commands_of(page)[: expected.first], *expected.more]:
            begun = time.monotonic()
            status, said = run_command(command, folder)
            print(f"{page}: {command}: exit status {status}, {time.monotonic() - begun:.0f} s", flush=True)
            if "Traceback (most recent call last)" in said:
                wrong.append(f"{command}: a traceback\n{said[-2000:]}")
            elif expected.refused and not (status == 1 and re.search(expected.refused, said)):
                wrong.append(
                    f"{command}: exit status {status}, expected a message about {expected.refused}:\n{said[-1000:]}"
                )
            elif not expected.refused and status:
                wrong.append(f"{command}: exit status {status}\n{said[-1000:]}")
        if not wrong and (found := expected.after(folder)):
            wrong.append(found)
    return [f"{page}: {line}" for line in wrong]


def run_command(command: str, folder: Path) -> tuple[int, str]:
    """Exit status and everything that a command prints. `make` takes this environment as it is."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    command = (
        command.replace("make ", "make --assume-old=.venv/.installed ", 1) if command.startswith("make") else command
    )
    try:
        run = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=60 * MINUTES
        )
    except subprocess.TimeoutExpired:
        return 124, f"more than {MINUTES} minutes"
    return run.returncode, run.stdout + run.stderr


def main() -> int:
    """Run the pages; exit status 1 where one is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pages", nargs="*", default=list(PAGES), metavar="PAGE")
    wrong = [line for page in parser.parse_args().pages for line in run_page(page)]
    print(*wrong, sep="\n\n")
    print(f"{len(wrong)} faults in the first commands of the pages")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
