"""How right an answer is, from 0 to 1, given the reference: for data with ground truth.

A grader is a function (answer, question) → grade in [0, 1], or None where nothing in the answer can be
graded. Users name their own in a config as `package.module:function`.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterable

from uni_dpo.data.questions import REFERENCE_COLUMNS, Question
from uni_dpo.errors import UniDPOError
from uni_dpo.settings.registry import find

Grader = Callable[[str, Question], float | None]

SHOWN_FAULTS = 5

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?(?:/\d+)?%?(?!\d)")


def load_grader(name: str) -> Grader:
    """The grader of that name, held to its range; of several references the one that the answer meets best counts."""
    grader: Grader = find("grader", name)

    def grade(answer: str, question: Question) -> float | None:
        grades = [grader(answer, one) for one in question.each_reference()]
        for found in grades:
            if found is not None and not 0 <= found <= 1:
                raise UniDPOError(f"grader {name}: a grade lies in [0, 1], but {answer!r} got {found!r}")
        return max((found for found in grades if found is not None), default=None)

    return grade


def check_references(name: str, questions: Iterable[Question]) -> None:
    """See that a built-in grader can grade answers to these questions, before any is asked.

    Raises:
        UniDPOError: some have no reference, or none that the grader can use; the first of them are named.
    """
    grader = find("grader", name)
    faults = []
    for question in questions:
        try:
            if name == "math":
                reference_of(question)
            elif grader in (exact, numeric, multiple_choice):
                for one in question.each_reference():
                    grader("", one)
        except UniDPOError as error:
            faults.append(str(error))
    if len(faults) == 1:
        raise UniDPOError(faults[0])
    if faults:
        lines = [f"{len(faults):,} questions cannot be graded:", *faults[:SHOWN_FAULTS]]
        if len(faults) > SHOWN_FAULTS:
            lines.append(f"… and {len(faults) - SHOWN_FAULTS:,} more")
        raise UniDPOError("\n  ".join(lines))


def exact(answer: str, question: Question) -> float:
    """1 where answer and reference agree but for case, punctuation at the ends, and white space."""
    return float(_normalise(answer) == _normalise(reference_of(question)))


def numeric(answer: str, question: Question, *, relative: float = 1e-3, absolute: float = 1e-9) -> float | None:
    """1 where the answer's last number equals the reference within tolerance; None without a number."""
    wanted = last_number(reference_of(question))
    if wanted is None:
        raise UniDPOError(f"{question.called}: the reference {question.reference!r} holds no number")
    found = last_number(answer)
    if found is None:
        return None
    return float(math.isclose(found, wanted, rel_tol=relative, abs_tol=absolute))


def multiple_choice(answer: str, question: Question) -> float | None:
    """1 where the answer picks the reference's option, by letter or by its whole text; None if it picks none."""
    options = {letter.upper(): text for letter, text in question.options.items()}
    wanted = pick_option(reference_of(question), options)
    if wanted is None:
        raise UniDPOError(f"{question.called}: the reference {question.reference!r} is none of the options")
    picked = pick_option(answer, options)
    return None if picked is None else float(picked == wanted)


def last_number(text: str) -> float | None:
    """The last number in a text: 1,234 and 3/4 and 5e-3 are read; 12% counts as 12."""
    found = [match.group().rstrip("%") for match in _NUMBER.finditer(text)]
    for number in reversed([n for n in found if any(c.isdigit() for c in n)]):
        numerator, _, denominator = number.replace(",", "").partition("/")
        try:
            return float(numerator) / (float(denominator) if denominator else 1.0)
        except (ValueError, ZeroDivisionError):
            continue
    return None


def pick_option(text: str, options: dict[str, str]) -> str | None:
    """The letter of the one option that a text picks.

    Read in this order: the text is an option's own text; it begins with a letter (`B`, `(B)`, `B. two`);
    it says `answer is B`; it holds the text of exactly one option.
    """
    letters = "".join(re.escape(letter) for letter in options) or "A-Z"
    plain = _normalise(text)
    for letter, option in options.items():
        if plain == _normalise(option):
            return letter
    leading = re.match(rf"\s*\(?([{letters}])(?:[).:,]|\s*$)", text, re.IGNORECASE)
    named = re.findall(rf"(?:answer|option|choice)(?: is)?:?\s*\(?([{letters}])\b", text, re.IGNORECASE)
    if leading or named:
        return (leading.group(1) if leading else named[-1]).upper()
    held = [
        letter
        for letter, option in options.items()
        if re.search(rf"(?<!\w){re.escape(_normalise(option))}(?!\w)", plain)
    ]
    return held[0] if len(held) == 1 else None


def reference_of(question: Question) -> str:
    """The question's reference answer, or a plain error that there is none."""
    if question.reference is None:
        *most, last = (f"`{column}`" for column in REFERENCE_COLUMNS)
        raise UniDPOError(f"{question.called}: grading needs a reference answer, in column {', '.join(most)} or {last}")
    return question.reference


def _normalise(text: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.strip(" .,;:!?\"'“”‘’()[]")
