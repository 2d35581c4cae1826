"""The grader `math`: is an answer's final result equal to the reference as mathematics?

Equality is that of math-verify (the extra `math`): fractions, roots, units, tuples, intervals, sets and expressions
that are the same after simplification. It runs in a process of its own, this module started as a script: one JSON line
in, `[wanted, given, whole text]`, one JSON line out, true, false, or null where nothing was found. A model can write
what never ends to compute or fills the memory, and often inside C code that no Python signal handler stops. So the
alarm there keeps its default action, which ends the process, and memory is limited; whoever asked starts another one.

Formulas as people type them (2√3, 10², 2½, 3×10⁸, 90°, 5 km/h, 5米) become the LaTeX that math-verify reads first.
"""

import atexit
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import unicodedata
from fractions import Fraction
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, cast

from uni_dpo.data.questions import Question
from uni_dpo.errors import UniDPOError
from uni_dpo.graders.grading import reference_of
from uni_dpo.graders.number_words import CHINESE_SCALES

_SIGNS = {
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∞": r"\infty ",
    "°": r"^\circ ",
    r"\degree": r"^\circ ",
    "−": "-",
}
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n", strict=True))
_SIGN = r"[√∞×⁰¹²³⁴-⁹⁻⁺ⁿ¼-¾⅐-⅞]"
_PART = r"[\w.,^(){}|√∞⁰¹²³⁴-⁹⁻⁺ⁿ¼-¾⅐-⅞°π]+"
_FORMULA = re.compile(rf"(?<![\w\\])[-−]?{_PART}(?:\s?[-−+×·⋅/*=]\s?{_PART})*")
_TYPESET = re.compile(r"(\$[^$]+\$|\\\(.+?\\\)|\\\[.+?\\\])", re.DOTALL)
_AREA = re.compile(r"(?<=\d)\s*(?:[kcdmµ]?m|ft|in|yd)[²³]")
_NAME = (
    r"(?:[kcdmµnMG]?(?:m|g|s|L|l|A|V|W|J|N|Hz|Pa|mol|eV|C|K)|ft|in|yd|mi|miles?|lbs?|oz|hr?|hours?|min|minutes?|sec|seconds?"
    r"|days?|years?|people|persons?|dollars?|units?)"
)
_POWER = r"(?:\^\{?-?\d\}?)?"
_UNITS = re.compile(rf"(\S*\d)(?:\s|\\[ ,;:])*{_NAME}{_POWER}(?:\s*(?:/|\\cdot|\*|per)\s*{_NAME}{_POWER})*")
_SCALE = rf"((?!千[米克瓦焦帕赫卡伏牛])(?:{'|'.join(CHINESE_SCALES)}))"
"""Behind a number. 千 of 千米 and 千克 belongs to the unit: 3千米 is 3, as 3 km is."""
_CHINESE = re.compile(rf"(-?[\d.,]+)\s*{_SCALE}?[\u4e00-\u9fff]*")


def latex(formula: str) -> str:
    """Return a formula with the signs of Unicode as LaTeX."""
    formula = re.sub(
        "[¼-¾⅐-⅞]",
        lambda match: "\\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", match[0]).split("\u2044")),
        formula,
    )
    formula = re.sub("[⁰¹²³⁴-⁹⁻⁺ⁿ]+", lambda match: "^{" + "".join(_RAISED[sign] for sign in match[0]) + "}", formula)
    formula = re.sub(
        r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|\w))", lambda match: f"\\sqrt{{{match[1] or match[2]}}}", formula
    )
    for sign, command in _SIGNS.items():
        formula = formula.replace(sign, command)
    return formula.strip()


def typeset(text: str) -> str:
    """Return a text with the formulas that are written without LaTeX, and have a sign of one, between dollar signs.

    Numbers stand apart from Chinese around them, as math-verify finds them.
    """

    def formula(match: re.Match[str]) -> str:
        found = match[0].rstrip(".,")
        return f"${latex(found)}$" + match[0][len(found) :] if re.search(_SIGN, found) else match[0]

    text = re.sub(rf"(?<=\d)\s?{_SCALE}", lambda match: f"×10^{CHINESE_SCALES[match[1]]}", text)
    text = re.sub(r"(?<=[\u4e00-\u9fff])(?=-?\d)|(?<=\d)(?=[\u4e00-\u9fff])", " ", text)
    parts = _TYPESET.split(text)
    parts[::2] = [_FORMULA.sub(formula, _AREA.sub("", part)) for part in parts[::2]]
    return "".join(parts)


def without_unit(value: str) -> str:
    """Return a number without the unit behind it: 5 km/h, 5 cm^2, 12 个; 5万 is 50000. What is none stays."""
    if found := _UNITS.fullmatch(value):
        return found[1]
    if not (found := _CHINESE.fullmatch(value)) or value == found[1]:
        return value
    return f"{found[1]}e{CHINESE_SCALES[found[2]]}" if found[2] else found[1]


SECONDS = 10
"""For one comparison; an expression that takes longer counts as not to be graded."""
MEMORY = 4 * 1024**3
"""Bytes of address space of the process that compares."""
READY = "ready"
READ_FROM_END = 1_000
"""Characters of an answer without a box in which its last expression is looked for."""

if find_spec("math_verify") is None:
    raise UniDPOError(
        "the grader `math` needs math-verify, which the extra `math` of uni-dpo brings: pip install math-verify"
    )

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,30})?(?:\.\d{1,30})?(?:[eE][-+]?\d{1,2})?")
_PERCENT = re.compile(r"\s*\\?%$")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def grade(answer: str, question: Question) -> float | None:
    """Return 1 where the answer's final result equals the reference.

    None where it has none, or none that can be compared.

    The final result is what stands in the last `\\boxed{…}`, else behind the last `####`, else the last expression; of
    an answer with `<answer>…</answer>`, all of it in there.
    12 % equals both 12 and 0.12.
    """
    reference = reference_of(question)
    answer = (_ANSWER.findall(answer) or [answer])[-1]
    wanted, given = final_result(reference) or reference.strip(), final_result(answer)
    bare = latex(_bare(answer).rstrip("."))
    if given is None and _plain_number(_PERCENT.sub("", bare)) is not None:
        given = bare
    equal = _compare(latex(wanted), typeset(answer[-READ_FROM_END:]), True) if given is None else _equal(wanted, given)
    return None if equal is None else float(equal)


def final_result(text: str) -> str | None:
    """Return what stands in the last closed `\\boxed{…}` or `\\fbox{…}`, else in the line behind the last `####`."""
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
    hundredths = [f"\\frac{{{number}}}{{100}}" for number in (wanted, given)]
    return _equal_values(hundredths[0], given) if percentages[0] else _equal_values(wanted, hundredths[1])


def _equal_values(wanted: str, given: str) -> bool | None:
    if " ".join(wanted.split()) == " ".join(given.split()):
        return True
    wanted, given = without_unit(latex(wanted)), without_unit(latex(given))
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
            return cast("bool | None", json.loads(reply))

    def _start(self) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        # -P: a module of the folder it is started in must not stand before one that it imports.
        command = [sys.executable, "-P", "-m", __name__, str(SECONDS)]
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment
        )
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


def _serve(seconds: int) -> None:
    """Say that this process is ready; then compare until there is no more input."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most), most))
    from math_verify import LatexExtractionConfig, parse, verify

    def expression(text: str) -> list[Any]:
        return parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)

    logging.disable()
    print(READY, flush=True)
    for line in sys.stdin:
        wanted, given, whole_text = json.loads(line)
        signal.alarm(seconds)
        try:
            found = parse(given, parsing_timeout=None) if whole_text else expression(given)
            equal = verify(expression(wanted), found, timeout_seconds=None) if found else None
        except Exception:  # of a library that is handed anything: what it cannot read, it cannot compare
            equal = None
        signal.alarm(0)
        print(json.dumps(equal), flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
