"""What the fuzzers share: a numbered input, a clock that ends a hang, counts, and the line that names the seed."""

import argparse
import contextlib
import io
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

from typer.exceptions import TyperException

from uni_dpo.errors import UniDPOError

sys.path.append(str(Path(__file__).parents[1] / "servers"))  # what all tests share, where a fuzzer is run as a script

SECONDS = 180
"""An input that takes longer hangs; the first of a command imports its libraries."""
Input = Callable[[random.Random, int], tuple[str, Callable[[], object]]]
"""(generator, number) → what is fuzzed, and the call that is to end well. It may write into the working folder."""


@dataclass
class Outcomes:
    """What came of the inputs: command and end → how many, and those that did not end as they should."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class HangError(BaseException):
    """An input took too long; no `except Exception` may swallow it."""


def fuzz(make: Input, numbers: Iterable[int], seed: int = 0, outcomes: Outcomes | None = None) -> Outcomes:
    """Try the inputs of these numbers; only messages to the user and exit statuses are right ends."""
    outcomes = outcomes or Outcomes()
    with tempfile.TemporaryDirectory() as folder, working_in(Path(folder)):
        for number in numbers:
            rng = random.Random(f"{seed}:{number}")
            with tempfile.TemporaryDirectory(dir=folder) as place, working_in(Path(place)):
                name, run = make(rng, number)
                end = _ended(run)
                outcomes.counts[f"{name}: {end.splitlines()[0]}"] += 1
                if end not in ("right", "refused"):
                    outcomes.failures.append(f"seed {seed}, number {number}, {name}: {end}")
    return outcomes


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Be in a folder for a while."""
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
    except (UniDPOError, TyperException) as error:
        return "refused" if str(error) or isinstance(error, TyperException) else "refused without a word"
    except SystemExit as end:
        return "right" if end.code in (0, None, 1) else f"exit status {end.code}"
    except HangError:
        return f"more than {SECONDS} s\n{traceback.format_exc(limit=-4)}"
    except OSError as error:
        return "refused" if error.errno is not None and error.filename else _trace()
    except Exception:
        return _trace()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return "right"


def _trace() -> str:
    return f"a traceback\n{traceback.format_exc(limit=-6)}"


def mutated(rng: random.Random, value: Any, odd: list[Any]) -> Any:
    """A copy of `value` with one part of it replaced, removed, renamed, repeated or wrapped."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            return {key: item for key, item in value.items() if key != name}
        if kind < 0.15:
            return {("x" if key == name else key): item for key, item in value.items()}
        return value | {name: mutated(rng, value[name], odd)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value[:place] + value[place + rng.choice([0, 1]) :] + value[:1]
        return [*value[:place], mutated(rng, value[place], odd), *value[place + 1 :]]
    return rng.choice([rng.choice(odd), rng.choice(odd), [value], str(value)])


def main(kind: str, make: Input, description: str | None) -> int:
    """Fuzz, print seeds and counts; exit status 1 where something failed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    start = time.monotonic()
    numbers = range(arguments.count) if arguments.only is None else [arguments.only]
    outcomes = Outcomes()
    for first in range(0, len(numbers), 500):
        fuzz(make, numbers[first : first + 500], arguments.seed, outcomes)
        print(f"{min(first + 500, len(numbers)):,} of {len(numbers):,}", file=sys.stderr, flush=True)
    for name, count in sorted(outcomes.counts.items()):
        print(f"{count:8,}  {name}")
    print(*outcomes.failures, sep="\n\n")
    total = sum(outcomes.counts.values())
    print(f"{kind}: seed {arguments.seed}, {total:,} inputs, {len(outcomes.failures):,} failures, ", end="")
    print(f"{time.monotonic() - start:.0f} s")
    return int(bool(outcomes.failures))
