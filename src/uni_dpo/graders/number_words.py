"""Numbers written as words, in English and Chinese: as digits, and whether an answer says that there is none."""

import re

from uni_dpo.graders.grading import plain

_WORDS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50,
    "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_WORD = "|".join((*_WORDS, *_SCALES))
_ENGLISH = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b(?:(?:[\s-]+|\s+and\s+)(?:{_WORD})\b)*", re.IGNORECASE)
_DOZEN = re.compile(r"\b(half a|an?|one|two|three|four|five|six) dozen\b", re.IGNORECASE)
_PRONOUN = re.compile(
    r"\s+(?:of|is|can|could|should|would|will|that|which|who|in|on|at|to|with|from|has|was|may|might|must|does|by|side)\b",
    re.IGNORECASE,
)
_POINTED_AT = re.compile(
    r"\b(?:the|this|that|which|each|every|any|no|some|another|only|other|\w+er|\w+est|red|left|right|last|next)\s+$",
    re.IGNORECASE,
)
_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_UNITS = {"十": 10, "百": 100, "千": 1_000}
_COUNTED = "个只条张本辆人名位头匹支把块件座棵朵杯瓶次年岁天度元米种根架台艘双"
_SIGNS = "".join((*_DIGITS, *_UNITS))
_CHINESE = re.compile(rf"(?<![第{_SIGNS}])([{_SIGNS}]+)(?=\s*(?:[{_COUNTED}]|[。,;!]|$))", re.MULTILINE)


def with_digits(text: str) -> str:
    """Return a text with `twenty-one`, `two hundred and five`, `十二个` as digits.

    `one` as a pronoun stays, and so do words that are no single number together (`five six`).
    """

    def english(match: re.Match[str]) -> str:
        words = re.split(r"[\s-]+", match[0].lower())
        before, behind = text[: match.start()], text[match.end() :]
        if words == ["one"] and (_PRONOUN.match(behind) or _POINTED_AT.search(before)):
            return match[0]
        value = _english_value(words)
        return match[0] if value is None else str(value)

    text = _ENGLISH.sub(english, _DOZEN.sub(lambda match: _dozens(match[1]), text))
    return _CHINESE.sub(lambda match: str(_chinese_value(match[1])), text)


def _dozens(count: str) -> str:
    return "6" if count.lower() == "half a" else str(12 * _WORDS.get(count.lower(), 1))


def _english_value(words: list[str]) -> int | None:
    total = part = 0
    for at, word in enumerate(words):
        if word in _WORDS:
            tens = part % 100
            if (tens or (at and words[at - 1] in _WORDS)) and not (tens >= 20 and tens % 10 == 0 and _WORDS[word] < 10):
                return None
            part += _WORDS[word]
        elif word == "hundred":
            part *= 100
        elif word in _SCALES:
            total, part = total + part * _SCALES[word], 0
    return total + part


def _chinese_value(text: str) -> int:
    total = digit = 0
    for sign in text:
        if sign in _UNITS:
            total, digit = total + (digit or 1) * _UNITS[sign], 0
        else:
            digit = digit * 10 + _DIGITS[sign]
    return total + digit


_HOW_MANY = re.compile(r"\bhow many ([^?\n]+)")
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
    questions = _HOW_MANY.findall(asked.casefold())
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
