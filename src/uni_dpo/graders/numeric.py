"""The grader `numeric`: is the number that an answer states the reference's?"""

import math
import re
import unicodedata
from typing import NamedTuple

from uni_dpo.data.questions import Question
from uni_dpo.errors import UniDPOError
from uni_dpo.graders.grading import reference_of
from uni_dpo.graders.number_words import (
    CHINESE_SCALES,
    NUMBER_WORD,
    number_beside_noun,
    says_none,
    with_digits,
    with_fractions,
)


class Stated(NamedTuple):
    """A number as an answer states it: low and high end (the same but for a range), and what to multiply it by."""

    low: float
    high: float
    scale: float = 1.0


_SCALES = {
    "%": 0.01, "percent": 0.01, "per cent": 0.01, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12,
    **{sign: 10.0**power for sign, power in CHINESE_SCALES.items()},
}  # fmt: skip
_LETTERS = {"k": 1e3, "K": 1e3, "M": 1e6, "mn": 1e6, " mn": 1e6, "B": 1e9, "bn": 1e9, " bn": 1e9}
"""Scales close behind a number, as charts write them: 1.5k, 2M. Small m and b are units."""
_PLAIN = (
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)|"  # 1,234,567 and, as in India, 12,34,567
    r"\d{1,3}(?:[ \u202f]\d{3})+(?![\d.]*\d)|\d+)(?:\.\d+)?|\.\d+"
)
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]%])[-+](?=[.\d$€£¥\\])|\b(?:minus|negative)\s+|(?:负|零下)\s*)?[$€£¥]?\s?(?:"
    rf"\\[dtc]?frac\s*\{{(?P<top>-?(?:{_PLAIN}))\}}\s*\{{(?P<bottom>{_PLAIN})\}}"
    r"|(?<![\w.])(?:(?P<whole>\d{1,3})[ -])?(?P<part>\d[\d,]*(?:\.\d+)?)\s?/\s?(?P<of>\d+(?:\.\d+)?)"
    r"|(?<![\w.])(?P<base>\d+(?:\.\d+)?)\s*(?:\^|\*\*)\s*\{?(?P<exponent>[-+]?\d+)\}?"
    rf"|(?<![A-Za-z_.\d])(?<![A-Za-z]-)(?P<number>{_PLAIN})(?!D\b)"
    r"(?:[eE](?P<e>[-+]?\d+)|\s*(?:[x×*·]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*\{?(?P<power>[-+]?\d+)\}?)?"
    rf")(?!\d)(?:\s?\\?(?P<scale>{'|'.join(_SCALES)})|(?P<letters>(?-i:{'|'.join(_LETTERS)}))(?![A-Za-z]))?",
    re.IGNORECASE,
)
_RANGE = re.compile(r"^(?:\s*[^\s\d]{0,3})?\s*(?:-|~|\bto\b|至|到|\band\b)\s*$")
_UNIT_DIGIT = re.compile(r"(?<=[A-Za-zΩ])\s?\^\s?\{?-?\d+\}?|(?<=m)[23]\b")
_ENTRY = re.compile(r"(?m)^[ \t]*(?:\(\d{1,2}\)|\d{1,2}[.)、])\s+(?=\S)")
_LABEL = re.compile(
    r"(?i)\b(?:step|figure|fig\.?|image|table|equation|option|question)\s+\d+\b|第\s*\d+\s*[步张题]|[图表]\s*\d+"
)
_YEAR = re.compile(
    r"(?i)\b(?:in|since|during|until|year)\s+(?:1[5-9]|20)\d\d\b(?!\s*%|\s+[a-z]+s\b)|(?:1[5-9]|20)\d\d\s*年"
)
_BULLET = re.compile(r"(?m)^[ \t]*[-+][ \t]+")
_SAID = re.compile(
    r"(?i)\b(?:answer|result|total|sum)\b[^.\d\n=]{0,20}?(?:\bis\b|\bwas\b|\bbe\b|\bequals\b|:|=|≈|->|→)"
    r"|(?:答案|结果)\s*(?:应该|应)?\s*(?:是|为|:)|<answer>|\\boxed\s*(?=\{)|^####",
    re.MULTILINE,
)
_END = re.compile(r"[.!?](?=\s|$)|[。;\n]|</answer>")
_COMMA_DECIMAL = re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3})+,\d+(?![\d.,]*\d)")
"""1.234,50 as much of Europe writes it: a comma after groups of three can only be the decimal one."""
_SHORT_COMMA = re.compile(r"(?<![\d.,(\[])\d+,\d{1,2}(?![\d.,]*\d)(?!\s*[)\]])")
"""1,5 and 3,14: groups of thousands have three digits, and lists have a space, so the comma is the decimal one."""
_NO_NUMBER = re.compile(
    r"[(\[](?!\d{1,3}(?:,\d{3})+[)\]])\s*-?\d+(?:\.\d+)?(?:\s*,\s*-?\d+(?:\.\d+)?)+\s*[)\]]|"  # points: (3, 5)
    r"(?<![\d.])\d+(?::\d+)+(?!\d)"  # 12:30, 3:1
    r"|\b0x[\da-fA-F]+\b"
    r"|(?<!\d)\d{4}([-/])\d{1,2}\1\d{1,2}(?!\d)|(?<!\d)\d{1,2}([-/])\d{1,2}\2\d{4}(?!\d)"  # dates
    r"|(?<![\d.,])\d+(?:\.\d+){2,}(?!\d)"  # addresses, versions
    r"|(?:\d+(?:\.\d+)?)?\s?(?:√|\\sqrt)\s?[({]?\d+(?:\.\d+)?[)}]?"
    r"|(?:\d+(?:\.\d+)?)?\s?[*·×]?\s?(?:π|\\pi\b|\bpi\b)(?:\s?/\s?\d+)?"
)
"""What has digits and is no plain number."""
_SPREAD = re.compile(r"(?i)(?:±|\+/-|\\pm\b)\s*\d[\d.,]*|(?<=\d)(?: \w+)? out of (?:the )?\d[\d,]*")
"""How exact a number is, or of how many: 5 ± 0.1, 8 out of 10."""
_BOUND = re.compile(
    r"(?i)(?:\b(?:more|less|fewer|greater|larger|smaller|higher|lower) than|\bat (?:least|most)|\bup to|"
    r"(?<![\w\"'/])[<>≥≤]=?|超过|至少|最多|不到|少于|多于|大于|小于)"
    rf"\s*(?:or equal to |about )?(?:-?\d[\d.,]*|{NUMBER_WORD}\b)"
)
"""What a number is only compared with: more than 5."""
_DOTTED = re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![.,]?\d)")
_DENIED = re.compile(r"(?:\bnot|n't|\brather than|\binstead of|不是|而非)\s*(?:an?\s|about\s)?$", re.IGNORECASE)
_ALTERNATIVE = re.compile(r"^(?:\s*[^\s\d]{0,3})?\s*(?:\bor\b|或者?|还是)\s*$")
_BREAKDOWN = re.compile(r"(\d[^()\n]*?)(?<!\\)\(([^()=≈]*)\)")
"""A number, and in parentheses behind it what may say how it comes about: 7 (4 red and 3 green)."""
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+", strict=True))
DASHES = str.maketrans(dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d", "-"))


def numeric(answer: str, question: Question, *, relative: float = 1e-3, absolute: float = 1e-9) -> float | None:
    """Give 1 where the number that the answer states equals the reference within tolerance; None where it states none.

    45 % is right for 45 %, for 45 and for 0.45, and 5 million for 5 million, 5 and 5,000,000. A range is no number,
    unless the reference is a range too: then both ends count. `None` and `no dogs` are 0 where the question asks how
    many dogs there are (`says_none`), where 3 of `3 dogs and 2 cats` counts too. More than 5 is no 5.
    """
    wanted = stated(reference_of(question))
    if wanted is None:
        raise UniDPOError(f"{question.called}: the reference {question.reference!r} holds no number")
    said = answer if _BOUND.search(reference_of(question)) else _BOUND.sub(" ", answer)
    years = wanted.low == wanted.high and wanted.low in range(1500, 2100)
    beside = None if _SAID.search(said) else number_beside_noun(_normal(said), question.text)
    given = stated(said, years=years) if beside is None else Stated(beside, beside)
    if given is None and says_none(answer, question.text):
        given = Stated(0, 0)
    if given is None or (given.low == given.high) != (wanted.low == wanted.high):
        return None

    return float(equal(given, wanted, relative, absolute))


def equal(given: Stated, wanted: Stated, relative: float = 1e-3, absolute: float = 1e-9) -> bool:
    """Say whether two stated numbers are equal within tolerance; the scale of one alone may count or not."""

    def close(scale: float, other: float) -> bool:
        pairs = ((given.low * scale, wanted.low * other), (given.high * scale, wanted.high * other))
        return all(math.isclose(one, two, rel_tol=relative * (1 + 1e-9), abs_tol=absolute) for one, two in pairs)

    one_has_a_scale = (given.scale == 1) != (wanted.scale == 1)
    return close(given.scale, wanted.scale) or (one_has_a_scale and close(1, 1))


def stated(text: str, *, years: bool = True) -> Stated | None:
    """Return the number behind the last `answer is` or in the last box, else the last number; None where there is none.

    1,234 and 3/4 and 1 1/2 and 5e-3 and 2 × 10³ and -2 with any minus sign are read, and words (`three dogs`, `十二个`)
    where no digits stand outside of parentheses. Digits of units (m²) and names (CO2), of times, ratios, dates, points
    and roots, the numbers of list entries, steps and figures, those that are denied (`not 6`), and several in
    parentheses behind a number (`7 (4 red and 3 green)`) do not count.

    Args:
        text: an answer or a reference.
        years: whether the last number may be a year (`45 in 2019`) where there are others.
    """
    text = _normal(text)
    if not re.search(r"\d", re.sub(r"\([^()]*\)", "", _LABEL.sub(" ", text))):
        text = with_digits(text)
    text = with_fractions(text)
    cues = list(_SAID.finditer(text))
    if cues:
        rest = text[cues[-1].end() :].lstrip()
        said = rest[: end.start()] if (end := _END.search(rest)) else rest
        if found := _numbers(re.split(r"[=≈]", said)[-1]):
            return found[0]
    without = _BREAKDOWN.sub(_without_breakdown, _LABEL.sub(" ", _ENTRY.sub(" ", text)))
    found = ([] if years else _numbers(_YEAR.sub(" ", without))) or _numbers(without)
    if not found and len(_ENTRY.findall(text)) == 1:
        found = _numbers(text)
    return found[-1] if found else None


def _without_breakdown(match: "re.Match[str]") -> str:
    inside = _numbers(match[2])
    explains = len(inside) > 1 or any(number.low != number.high for number in inside)
    return match[1] if explains else match[0]


def _normal(text: str) -> str:
    text = re.sub(r"(?<=\d)[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: "^" + "".join(_SUPERSCRIPTS[c] for c in m[0]), text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹₀-₉⁻⁺]+", " ", text)
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text)
    text = unicodedata.normalize("NFKC", text).translate(DASHES).replace("\u2044", "/")
    text = re.sub(r"\\([dtc]?frac)\s*(\d)\s*(\d)", r"\\\1{\2}{\3}", text)
    text = _COMMA_DECIMAL.sub(lambda m: m[0].replace(".", "").replace(",", "."), text)
    text = _SHORT_COMMA.sub(lambda m: m[0].replace(",", "."), text)
    text = re.sub(r"(?<=\d)['_](?=\d{3}(?!\d))", "", _DOTTED.sub(lambda m: m[0].replace(".", ""), text))
    text = _SPREAD.sub(" ", _NO_NUMBER.sub(" ", text))
    text = text.replace("{,}", ",").replace("\\!", "").replace("\\,", " ")
    text = re.sub(r"(?<!\d)\*\*|\*\*(?!\d)", "", text)
    return _BULLET.sub(" ", _UNIT_DIGIT.sub(" ", text))


def _numbers(text: str) -> list[Stated]:
    """The numbers of a text in order; two that are the ends of a range as one."""
    found: list[Stated] = []
    end = 0
    for match in _NUMBER.finditer(text):
        number, before = _value(match), text[: match.start()]
        if number is None or _DENIED.search(before):
            continue
        last, gap = found[-1] if found else None, before[end:]
        between = "and" not in gap or "between" in before.casefold()
        if last and not last.low == last.high == number.low and _ALTERNATIVE.match(gap):
            found[-1] = Stated(min(last.low, number.low), max(last.high, number.low), number.scale)
        elif last and last.low == last.high < number.low and _RANGE.match(gap) and not match["sign"] and between:
            found[-1] = Stated(last.low, number.low, number.scale)
        else:
            found.append(number)
        end = match.end()
    return found


def _value(match: "re.Match[str]") -> Stated | None:
    def number(group: str) -> float:
        return float(re.sub(r"[,\s]", "", match[group] or "0"))

    try:
        if match["top"]:
            value = number("top") / number("bottom")
        elif match["of"]:
            value = number("whole") + number("part") / number("of")
        elif match["base"]:
            value = number("base") ** int(match["exponent"])
        else:
            value = float(f"{re.sub(r'[, ]', '', match['number'])}e{match['e'] or match['power'] or 0}")
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    if not math.isfinite(value):
        return None
    sign = -1.0 if (match["sign"] or "").strip().casefold() in ("-", "minus", "negative", "负", "零下") else 1.0
    scale = _LETTERS.get(match["letters"] or "") or _SCALES.get((match["scale"] or "").casefold(), 1.0)
    return Stated(sign * value, sign * value, scale)
