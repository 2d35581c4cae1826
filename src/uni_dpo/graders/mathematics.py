"""The grader `math`: is an answer's final result equal to the reference as mathematics?

Equality is that of math-verify (the extra `math`): fractions, roots, units, tuples, intervals, sets and expressions
that are the same after simplification.
"""

import atexit
import json
import re
import subprocess
import sys
from fractions import Fraction
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

from uni_dpo.data.questions import Question
from uni_dpo.errors import UniDPOError
from uni_dpo.graders.grading import reference_of
from uni_dpo.graders.math_equality import READY

SECONDS = 10
"""For one comparison; an expression that takes longer counts as not to be graded."""
READ_FROM_END = 1_000
"""Characters of an answer without a box in which its last expression is looked for."""

if find_spec("math_verify") is None:
    raise UniDPOError(
        "the grader `math` needs math-verify, which the extra `math` of uni-dpo brings: pip install math-verify"
    )

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,30})?(?:\.\d{1,30})?(?:[eE][-+]?\d{1,2})?")
_PERCENT = re.compile(r"\s*\\?%$")


def grade(answer: str, question: Question) -> float | None:
    """1 where the answer's final result equals the reference; None where it has none, or none that can be compared.

    The final result is what stands in the last `\\boxed{…}`, else behind the last `####`, else the last expression.
    12 % equals both 12 and 0.12.
    """
    reference = reference_of(question)
    wanted, given = final_result(reference) or reference.strip(), final_result(answer)
    equal = _compare(wanted, answer[-READ_FROM_END:], True) if given is None else _equal(wanted, given)
    return None if equal is None else float(equal)


def final_result(text: str) -> str | None:
    """What stands in the last closed `\\boxed{…}` or `\\fbox{…}`, else in the line behind the last `####`."""
    for start in reversed([match.end() for match in re.finditer(r"\\f?box(?:ed)?\s*\{", text)]):
        depth, escaped = 1, False
        for end in range(start, len(text)):
            character = text[end]
            if not escaped:
                depth += {"{": 1, "}": -1}.get(character, 0)
            if depth == 0:
                return _bare(text[start:end])
            escaped = character == "\\" and not escaped
    marked = re.findall(r"^####(.*)$", text, re.MULTILINE)
    return _bare(marked[-1]) if marked else None


def _bare(text: str) -> str:
    return text.strip().strip("$").strip()


def _equal(wanted: str, given: str) -> bool | None:
    """Equality of two results. If one alone is a percentage, its number counts and a hundredth of it."""
    percentages = [_PERCENT.search(text) is not None for text in (wanted, given)]
    wanted, given = _PERCENT.sub("", wanted), _PERCENT.sub("", given)
    equal = _equal_values(wanted, given)
    if equal or percentages[0] == percentages[1]:
        return equal
    return _equal_values(_hundredth(wanted), given) if percentages[0] else _equal_values(wanted, _hundredth(given))


def _hundredth(number: str) -> str:
    return f"\\frac{{{number}}}{{100}}"


def _equal_values(wanted: str, given: str) -> bool | None:
    if " ".join(wanted.split()) == " ".join(given.split()):
        return True
    numbers = _plain_number(wanted), _plain_number(given)
    return _compare(wanted, given, False) if None in numbers else numbers[0] == numbers[1]


def _plain_number(text: str) -> Fraction | None:
    text = text.replace("{,}", ",").replace("\\!", "")
    if _NUMBER.fullmatch(text) and any(character.isdigit() for character in text):
        return Fraction(text.replace(",", ""))
    return None


@lru_cache(maxsize=100_000)
def _compare(wanted: str, given: str, whole_text: bool) -> bool | None:
    return _comparer.compare(wanted, given, whole_text)


class _Comparer:
    """Holds the process that compares, and starts another one when it died over an expression."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.process: subprocess.Popen[str] | None = None
        atexit.register(self.close)

    def compare(self, wanted: str, given: str, whole_text: bool) -> bool | None:
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.process = self._start()
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(json.dumps([wanted, given, whole_text]) + "\n")
            self.process.stdin.flush()
            reply = self.process.stdout.readline()
            if not reply:
                self.process.wait()
                return None
            equal: bool | None = json.loads(reply)
            return equal

    def _start(self) -> "subprocess.Popen[str]":
        script = Path(__file__).with_name("math_equality.py")
        pipe = subprocess.PIPE
        # -P: the script's folder has modules whose names must not stand before those of others.
        command = [sys.executable, "-P", str(script), str(SECONDS)]
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        if process.stdout.readline().strip() != READY:
            raise UniDPOError(f"math-verify does not start; `{' '.join(command)}` says why")
        return process

    def close(self) -> None:
        """End the process: without input it ends by itself."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()


_comparer = _Comparer()
