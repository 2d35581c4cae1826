"""Whether an answer says that there is none of what a question counts."""

import re

from uni_dpo.graders.grading import plain

_COUNTED = re.compile(r"\bhow many ([^?\n]+)")
_OTHERWISE = re.compile(
    r"\b(?:not?|none|never|neither|without|except|excluding|besides|than|more|fewer|less|or how|and how)\b|n['’]t\b"
)
"""A count of what is not, or of a difference: `none` may mean the opposite there."""
_BEHIND = r"(?:are|is|were|was|can|could|do|does|did|has|have|in|on|at|visible|shown|there)\b.*"
_IS = r"(?:are|is|were|was)"
_THEM = " of (?:them|these|those)"
_NO = rf"(?:(?:there {_IS} )?no|there {_IS}(?: not|n['’]t) any)"
_WHOLE_IMAGE = (
    rf"(?: {_IS})?(?: visible| shown| present| pictured| here)?"
    r"(?: (?:in|on) (?:the|this) (?:image|picture|photo|scene))?(?: at all)?"
)
_THERE = re.compile(rf"(?: {_IS} there| can be seen| (?:can|do) you see)?{_WHOLE_IMAGE}")
"""Behind what is counted, in a question that asks whether it is there at all."""
_LONGEST = 4
"""Words that name what is counted, at most: `kinds of red cubes`."""


def says_none(answer: str, asked: str) -> bool:
    """Say whether an answer to `how many dogs …?` is `none`, `no dogs` or `there are no dogs`, and nothing else.

    What is counted must be what the question counts, and so must what it says of it: `no dogs on the left` may leave
    some on the right. Where the question asks what is there at all, `no dogs in the image` will do. A question that has
    a negation or a comparison is left alone.
    """
    questions = _COUNTED.findall(asked.casefold())
    if len(questions) != 1 or _OTHERWISE.search(questions[0]):
        return False
    said = re.sub(r"^(?:the )?(?:final )?answer(?: is|:) ", "", plain(answer.replace("*", "")))
    words = plain(questions[0]).split()
    return any(
        _says_none(said, " ".join(words[:length]), " ".join(words[length:]))
        for length in range(1, min(_LONGEST, len(words)) + 1)
    )


def _says_none(said: str, counted: str, rest: str) -> bool:
    if rest and not re.fullmatch(_BEHIND, rest):
        return False
    one_or_more = re.escape(counted.removesuffix("s")) + "s?"
    whose = f" {one_or_more}" if counted.startswith("of ") else _THEM
    said_of_it = re.escape(re.sub(rf"^{_IS} (?:there )?", "", rest))
    behind = rf"(?: {_IS})?(?: there)? {said_of_it}"
    if _THERE.fullmatch(f" {rest}" if rest else ""):
        behind += f"|{_WHOLE_IMAGE}"
    none = rf"(?:there {_IS} )?none"
    return bool(re.fullmatch(rf"{none}(?:{_THEM})?|(?:{none}(?:{whose})?|{_NO} {one_or_more})(?:{behind})", said))
