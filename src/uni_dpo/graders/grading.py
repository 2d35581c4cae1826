"""How right an answer is, from 0 to 1, given the reference: for data with ground truth.

A grader is a function (answer, question) → grade in [0, 1], or None where nothing in the answer can be
graded. Users name their own in a config as `package.module:function`.
"""

import unicodedata
from collections.abc import Callable, Iterable

from uni_dpo.data.questions import REFERENCE_COLUMNS, Question
from uni_dpo.errors import UniDPOError
from uni_dpo.settings.registry import find

Grader = Callable[[str, Question], float | None]

SHOWN_FAULTS = 5


def load_grader(name: str) -> Grader:
    """The grader of that name, held to its range; see `over_references`."""
    grader = over_references(find("grader", name))

    def grade(answer: str, question: Question) -> float | None:
        found = grader(answer, question)
        if found is not None and not 0 <= found <= 1:
            raise UniDPOError(f"grader {name}: a grade lies in [0, 1], but {answer!r} got {found!r}")
        return found

    return grade


def over_references(grader: Grader) -> Grader:
    """Let the one of several references count that an answer meets best."""

    def grade(answer: str, question: Question) -> float | None:
        grades = [grader(answer, one) for one in question.each_reference()]
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
            if name in ("exact", "math", "vqa"):
                reference_of(question)
            elif name in ("numeric", "multiple_choice"):
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
    return float(plain(answer) == plain(reference_of(question)))


def reference_of(question: Question) -> str:
    """The question's reference answer, or a plain error that there is none."""
    if question.reference is None:
        *most, last = (f"`{column}`" for column in REFERENCE_COLUMNS)
        raise UniDPOError(f"{question.called}: grading needs a reference answer, in column {', '.join(most)} or {last}")
    return question.reference


def references_of(question: Question) -> tuple[str, ...]:
    """All of the question's right answers, with repeats, or a plain error that there is none."""
    return question.references or (reference_of(question),)


def plain(text: str) -> str:
    """A text without case, surplus white space, full-width forms, and punctuation at its ends."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.strip(" .,;:!?\"'“”‘’()[]。、*`")
