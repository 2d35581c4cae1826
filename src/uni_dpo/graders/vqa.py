"""The grader `vqa`: the VQA accuracy of an answer against those of several people (TextVQA, VQAv2).

Antol et al. 2015, "VQA: Visual Question Answering", section 4.1; averaged over the sets of all people but one, as its
evaluation does.
"""

import re

from uni_dpo.data.questions import Question
from uni_dpo.graders.grading import plain, reference_of

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = ("a", "an", "the")
AGREEING = 3
"""This many people who gave an answer make it fully right."""


def vqa(answer: str, question: Question) -> float | None:
    """Return min(matches / 3, 1) over all people but one, averaged over who is left out; None for an empty answer.

    With one reference alone it is 1 where the answer equals it.
    """
    references = [normal(reference) for reference in question.references or (reference_of(question),)]
    given = normal(answer)
    if not given:
        return None
    if len(references) == 1:
        return float(given == references[0])
    matches = references.count(given)
    others = [matches - (reference == given) for reference in references]
    return sum(min(count / AGREEING, 1.0) for count in others) / len(references)


def normal(text: str) -> str:
    """Return a short answer without case, articles and punctuation, its number words as digits."""
    text = re.sub(r"[.,](?!\d)|(?<!\d)[.,]|(?<=\d),(?=\d{3}\b)|['’]", "", plain(text))
    words = re.sub(r"[;/\[\]\"{}()=+\\_\-<>@`?!:]", " ", text).split()
    return " ".join(_DIGITS.get(word, word) for word in words if word not in _ARTICLES)
