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
NUMBER_WORD = rf"(?:an? )?(?:{_WORD})"
_DOZEN = re.compile(r"\b(half a|an?|one|two|three|four|five|six) dozen\b", re.IGNORECASE)
_PRONOUN = re.compile(
    r"\s+(?:of|is|can|could|should|would|will|that|which|who|in|on|at|to|with|from|has|was|may|might|must|does|by|side)\b",
    re.IGNORECASE,
)
_POINTED_AT = re.compile(
    r"\b(?:the|this|that|which|each|every|any|no|some|another|the\s+only|other|\w+er|\w+est|red|left|right|last|next)\s+$",
    re.IGNORECASE,
)
_PARTS = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10,
}  # fmt: skip
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
_ORDINAL = re.compile(
    rf"\b({'|'.join(word for word, value in _WORDS.items() if value >= 20)})[\s-]({'|'.join(_ORDINALS)})\b",
    re.IGNORECASE,
)
_PART_OF = re.compile(
    rf"(?P<and>\s+and\s+)?\b(?P<count>an?(?=\s\w+ of\b)|{'|'.join(_WORDS)})[\s-](?P<part>{'|'.join(_PARTS)})s?\b"
    r"|\bhalf(?= of\b)|^\W*half(?=\W*$)",
    re.IGNORECASE,
)
_AND_A_PART = re.compile(r"(?<=\d)\s+and an? (half|quarter|third)\b(?! of)", re.IGNORECASE)
_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_UNITS = {"十": 10, "百": 100, "千": 1_000, "万": 10_000, "亿": 100_000_000}
CHINESE_SCALES = {"百万": 6, "千万": 7, "百亿": 10, "千亿": 11, "万亿": 12, "千": 3, "万": 4, "亿": 8}
"""What stands behind a number that is written in digits, as powers of ten; the longer ones first."""
_COUNTED = "个只条张本辆人名位头匹支把块件座棵朵杯瓶次年岁天度元米种根架台艘双"
_SIGNS = "".join((*_DIGITS, *_UNITS))
_CHINESE = re.compile(
    rf"(?<![第点{_SIGNS}])([{_SIGNS}]+(?:点[{''.join(_DIGITS)}]+)?)(?=\s*(?:[{_COUNTED}%/]|[。,;!]|$))", re.MULTILINE
)
_SHARE = re.compile(rf"(?<![第{_SIGNS}\d])([{_SIGNS}]+|\d+)分之([{_SIGNS}]+(?:点[{''.join(_DIGITS)}]+)?|\d+(?:\.\d+)?)")


def with_digits(text: str) -> str:
    """Return a text with `twenty-one`, `twenty-first`, `two hundred`, `two thirds`, `十二个`, `三万五千` as digits.

    `one` as a pronoun stays, and so do words that are no single number together (`five six`).
    """

    def english(match: re.Match[str]) -> str:
        words = re.split(r"[\s-]+", match[0].lower())
        before, behind = text[: match.start()], text[match.end() :]
        if words == ["one"] and (_PRONOUN.match(behind) or _POINTED_AT.search(before)):
            return match[0]
        value = _english_value(words)
        return match[0] if value is None else str(value)

    text = _ORDINAL.sub(lambda match: str(_WORDS[match[1].lower()] + _ORDINALS.index(match[2].lower()) + 1), text)
    text = re.sub(rf"(?i)\ban?(?= (?:{'|'.join(_SCALES)})\b)", "one", text)
    text = _PART_OF.sub(_fraction, _DOZEN.sub(lambda match: _dozens(match[1]), text))
    text = _ENGLISH.sub(english, text).replace("一半", "1/2")
    return _CHINESE.sub(lambda match: _chinese_value(match[1]), text)


def with_fractions(text: str) -> str:
    """Return a text with `5 and a half` as 5 1/2, `三分之二` as 2/3 and `百分之12` as 12%."""

    def share(match: re.Match[str]) -> str:
        whole, part = (text if text[0].isdigit() else _chinese_value(text) for text in match.groups())
        return f"{part}%" if match[1] == "百" else f" {part}/{whole}"

    return _SHARE.sub(share, _AND_A_PART.sub(lambda match: f" 1/{_PARTS[match[1].lower()]}", text))


def _fraction(match: re.Match[str]) -> str:
    count = _WORDS.get((match["count"] or "one").lower(), 1)
    return f"{' ' if match['and'] else ''}{count}/{_PARTS[(match['part'] or 'half').lower()]}"


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


def _chinese_value(text: str) -> str:
    """The digits of 十五万, of 三点五, and of 一百五, which is 150."""
    text, point, decimals = text.partition("点")
    total = part = digit = 0
    for sign in text:
        unit = _UNITS.get(sign)
        if unit is None:
            digit = digit * 10 + _DIGITS[sign]
        elif unit < 10_000:
            part, digit = part + (digit or 1) * unit, 0
        elif unit == 10_000:
            total, part, digit = total + (part + digit or 1) * unit, 0, 0
        else:
            total, part, digit = (total + part + digit or 1) * unit, 0, 0
    if text[-1] in _DIGITS and text[-2:-1] in ("百", "千", "万", "亿"):
        digit *= _UNITS[text[-2]] // 10
    return f"{total + part + digit}{'.' if point else ''}{''.join(str(_DIGITS[sign]) for sign in decimals)}"


_HOW_MANY = re.compile(r"\bhow many ([^?\n]+)")
_OTHERWISE = re.compile(
    r"\b(?:not?|none|never|neither|without|except|excluding|besides|than|more|fewer|less|or how|and how)\b|n['’]t\b"
)
"""A count of what is not, or of a difference: `none` may mean the opposite there."""
_BEHIND = r"(?:are|is|were|was|can|could|do|does|did|has|have|in|on|at|visible|shown|there)\b.*"
_IS = r"(?:are|is|were|was)"
_THEM = " of (?:them|these|those)"
_SEE = r"i (?:(?:do|can)(?: ?not|n['’]t)|can['’]t) see"
_NO = rf"(?:(?:there {_IS} |i see )?no|(?:there {_IS}(?: not|n['’]t)|{_SEE}) any)"
_WHOLE_IMAGE = (
    rf"(?: {_IS})?(?: visible| shown| present| pictured| here)?"
    r"(?: (?:in|on) (?:the|this) (?:image|picture|photo|scene))?(?: at all)?"
)
_THERE = re.compile(rf"(?: {_IS} there| can be seen| (?:can|do) you see)?{_WHOLE_IMAGE}")
"""Behind what is counted, in a question that asks whether it is there at all."""
_LONGEST = 4
"""Words that name what is counted, at most: `kinds of red cubes`."""


_ASKED_CHINESE = re.compile(rf"(?:几|多少)\s*[{_COUNTED}]?\s*([^?？。\s]*)")


_IN_ALL = r"\b(?:in total|altogether|in all|overall)\b"
_SUMMED = re.compile(rf"(?i){_IN_ALL}|\b(?:total|sum)\b|[=+]|[共总]")


def number_beside_noun(answer: str, asked: str) -> float | None:
    """Return the number that stands right before what a question counts, where one alone does: `3 dogs, 2 black`.

    The question asks what is there at all, in English or Chinese. An answer that sums up has its sum elsewhere.
    """
    text = with_digits(answer)
    if (what := _asked_for(asked)) is None:
        return None
    found = list(
        re.finditer(rf"(?i)(?P<sums>共有?|{_IN_ALL} )?(?<![A-Za-z\d.,/~-])(\d+) ?{what}(?P<up>,? {_IN_ALL})?", text)
    )
    found = [
        match for match in found if not re.search(r"(?:\bor|\bto|\bnot|n't|-|至|到|或)\s*$", text[: match.start(2)])
    ]
    if len({match[2] for match in found}) != 1:
        return None
    return float(found[0][2]) if found[0]["sums"] or found[0]["up"] or not _SUMMED.search(text) else None


def _asked_for(asked: str) -> str | None:
    """A pattern of what `how many dogs are there?` counts; None for a question that asks more than what is there."""
    if (noun := _chinese_noun(asked)) is not None:
        return rf"[{_COUNTED}]?{re.escape(noun)}" if noun else None
    nouns = (noun for noun, rest in _nouns(asked) if _THERE.fullmatch(f" {rest}" if rest else ""))
    noun = next(nouns, None)
    return None if noun is None else re.escape(noun.removesuffix("s")) + r"s?\b"


def _chinese_noun(asked: str) -> str | None:
    """What 几 or 多少 asks for, which may be left out; None where none or several ask, or one negates or compares."""
    nouns: list[str] = _ASKED_CHINESE.findall(asked)
    return nouns[0] if len(nouns) == 1 and not re.search("[没不除]|多少?于", asked) else None


def _nouns(asked: str) -> list[tuple[str, str]]:
    """What `how many …` may count, of one word or more, with the rest; nothing where it negates or compares."""
    questions = _HOW_MANY.findall(asked.casefold())
    if len(questions) != 1 or _OTHERWISE.search(questions[0]):
        return []
    words = plain(questions[0]).split()
    return [(" ".join(words[:at]), " ".join(words[at:])) for at in range(1, min(_LONGEST, len(words)) + 1)]


def says_none(answer: str, asked: str) -> bool:
    """Say whether an answer to `how many dogs …?` is `none`, `no dogs`, `there are no dogs` or `没有狗`, and no more.

    What is counted must be what the question counts, and so must what it says of it: `no dogs on the left` may leave
    some on the right. Where the question asks what is there at all, `no dogs in the image` will do. A question that has
    a negation or a comparison is left alone.
    """
    if (noun := _chinese_noun(asked)) is not None:
        none = rf"(?:答案:)?(?:[图画](?:片|像|面)?[中里上]?)?(?:没有|无)(?:任何|一[{_COUNTED}])?(?:{re.escape(noun)})?"
        return re.fullmatch(none, plain(answer)) is not None
    said = re.sub(r"^(?:the )?(?:final )?answer(?: is|:) ", "", plain(answer.replace("*", "")))
    return any(_says_none(said, noun, rest) for noun, rest in _nouns(asked))


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
