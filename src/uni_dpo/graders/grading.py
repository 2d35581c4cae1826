"""How right an answer is, from 0 to 1, given the reference: for data with ground truth.

A grader is a function (answer, question) → grade in [0, 1], or None where nothing in the answer can be
graded. Users name their own in a config as `package.module:function`.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable

from uni_dpo.data.columns import REFERENCE_COLUMNS
from uni_dpo.data.questions import Question
from uni_dpo.errors import UniDPOError
from uni_dpo.settings.registry import find

Grader = Callable[[str, Question], float | None]

SHOWN_QUESTIONS = 5
_TAGS = r"(?:think|thinking|thought|thoughts|reason|reasoning|seed:think)"
_OPENING = re.compile(
    rf"<{_TAGS}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>|<\|channel>thought"
    r"|(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)<\|message\|>",
    re.IGNORECASE,
)
"""How models begin their reasoning: R1 and its like, Magistral, Kimi, OpenThinker, Command A, Gemma 4, gpt-oss."""
_CLOSING = re.compile(
    rf"</{_TAGS}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>|<channel\|>"
    r"|(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>|assistantfinal",
    re.IGNORECASE,
)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_ENDS = re.compile(r"\A\s*<\|[A-Za-z_]+\|>|<\|[A-Za-z_]+\|>\s*\Z")
"""Marks around what is said, as `<|begin_of_solution|>` and `<|return|>`."""


def load_grader(name: str) -> Grader:
    """Return the grader of that name, with its grades checked to be in [0, 1]; see `over_references`.

    A built-in one reads what is said after the reasoning (`without_reasoning`); if that is nothing, there is no grade.
    """
    found_grader = find("grader", name)
    built_in = _is_built_in(found_grader)
    grader = over_references(found_grader)

    def grade(answer: str, question: Question) -> float | None:
        said = without_reasoning(answer) if built_in else answer
        found = None if said is None else grader(said, question)
        if found is not None and (isinstance(found, str) or not 0 <= found <= 1):
            raise UniDPOError(f"grader {name}: a grade lies in [0, 1], but {answer!r} got {found!r}")
        return found

    return grade


def _is_built_in(grader: Grader) -> bool:
    return getattr(grader, "__module__", "").startswith("uni_dpo.graders.")


def without_reasoning(answer: str) -> str | None:
    """Return what an answer says outside of its reasoning; None where the reasoning was cut and nothing was said.

    Reasoning stands in `<think>…</think>` or in the marks that other families have for it.
    Templates that open the reasoning in the prompt leave its end alone in the answer.
    """
    marked = _OPENING.sub("<think>", _CLOSING.sub("</think>", answer))
    said = _THOUGHT.sub(" ", marked).split("</think>")[-1].split("<think>")[0]
    if said == answer:
        return answer
    return said if (said := _ENDS.sub("", said)).strip() else None


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
            if name == "math":
                reference_of(question)  # a process reads the reference itself
            elif _is_built_in(grader):
                for one in question.each_reference():
                    grader("", one)
        except UniDPOError as error:
            faults.append(str(error))
    if len(faults) == 1:
        raise UniDPOError(faults[0])
    if faults:
        lines = [f"{len(faults):,} questions cannot be graded:", *faults[:SHOWN_QUESTIONS]]
        if len(faults) > SHOWN_QUESTIONS:
            lines.append(f"… and {len(faults) - SHOWN_QUESTIONS:,} more")
        raise UniDPOError("\n  ".join(lines))


def exact(answer: str, question: Question) -> float:
    """Return 1 where answer and reference agree but for case, punctuation at the ends, and white space."""
    return float(plain(answer) == plain(reference_of(question)))


def reference_of(question: Question) -> str:
    """Return the question's reference answer, or a plain error that there is none."""
    if question.reference is None:
        *most, last = (f"`{column}`" for column in REFERENCE_COLUMNS)
        raise UniDPOError(f"{question.called}: grading needs a reference answer, in column {', '.join(most)} or {last}")
    return question.reference


def plain(text: str) -> str:
    """Return a text without case, surplus white space, full-width forms, and punctuation at its ends."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.strip(" .,;:!?\"'“”‘’()[]。、*`")
